"""Every way of values/ to install the chart gives objects that a cluster takes."""

import re

import kubernetes_validate
import pytest
from rendering import CHART, EVERYTHING, PRESETS, ROOT, Objects, experiment, render, run_helm, words

OLDEST, NEWEST = "1.28", "1.37"  # what Chart.yaml asks for, and what kubernetes-validate knows
FOREIGN = {"Experiment", "HTTPRoute", "ServiceMonitor"}  # kinds that aren't Kubernetes' own
SEARCH = ["Experiment x-HASH", "NetworkPolicy x-experiment"]
REST = [
    "Deployment x-serving",
    "NetworkPolicy x-bridge",
    "NetworkPolicy x-serving",
    "PersistentVolumeClaim x-models",
    "Pod x-test-serving",
    "Service x-bridge",
    "Service x-serving",
    "StatefulSet x-bridge",
]
SCALED = ["ConfigMap x-serving-dashboard", "HorizontalPodAutoscaler x-serving", "PodDisruptionBudget x-serving"]
SCHEDULE = [
    f"{kind} x-schedule" for kind in ("ConfigMap", "CronJob", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount")
]
INVENTORY = dict.fromkeys(PRESETS, SEARCH + REST)
INVENTORY["production"] = [*SEARCH, *REST, *SCALED, "ServiceMonitor x-serving"]
INVENTORY["all-options"] = [
    "Experiment everything",
    "HTTPRoute x-serving",
    "Ingress x-serving",
    "Job x-batch-HASH",
    "NetworkPolicy x-batch",
    "NetworkPolicy x-experiment",
    "ServiceMonitor x-serving",
    *REST,
    *SCALED,
    *SCHEDULE,
]


def inventory(objects: Objects) -> list[str]:
    return sorted(f"{item['kind']} {re.sub('[0-9a-f]{8}$', 'HASH', item['metadata']['name'])}" for item in objects)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_makes_exactly_these_objects(preset: str) -> None:
    assert inventory(render(preset)) == sorted(INVENTORY[preset])


def test_every_values_file_is_part_of_a_preset() -> None:
    there = {str(path.relative_to(ROOT / "values").with_suffix("")) for path in (ROOT / "values").glob("**/*.yaml")}
    assert {name for names in PRESETS.values() for name in names} == there


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_helm_lint(preset: str) -> None:
    given, stdin = words(preset, ())
    result = run_helm("lint", "--strict", str(CHART), *given, stdin=stdin)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_object_is_valid_kubernetes(preset: str, version: str) -> None:
    objects = render(preset, *EVERYTHING, kube_version=f"{version}.0")
    job = experiment(objects)["spec"]["trialTemplate"]["trialSpec"] | {"metadata": {"name": "trial"}}
    checked = [item for item in [*objects, job] if item["kind"] not in FOREIGN]
    for item in checked:
        kubernetes_validate.validate(item, version, strict=True)
    assert len(checked) >= len(REST) + 2  # the batch Job and the trial's


def test_an_older_kubernetes_than_the_chart_asks_for_is_refused() -> None:
    result = run_helm("template", "x", str(CHART), "--kube-version", "1.27.0", *words("iris", ())[0])
    assert "incompatible with Kubernetes v1.27.0" in result.stderr
