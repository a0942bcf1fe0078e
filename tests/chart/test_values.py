"""Every key of values.yaml is described, set in values/all-options.yaml; it changes what is rendered."""

import json
import re
from typing import Any

import pytest
import yaml
from rendering import CHART, EVERYTHING, ROOT, Object, refusal, render, run_helm, words

VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
# Maps whose keys are a user's own, Kubernetes' or Katib's: one value each.
WHOLE = {"args", "settings", "strategies", "requests", "limits", "labels"}


def keys(node: Object, path: str = "") -> set[str]:
    """Paths of all values."""
    found = set()
    for key, value in node.items():
        whole = key in WHOLE or (key == "image" and path != "global.")
        inner = isinstance(value, dict) and value and not whole
        found |= keys(value, f"{path}{key}.") if inner else {f"{path}{key}"}
    return found


def get(node: Any, path: str) -> Any:
    for key in path.split("."):
        node = node[key]
    return node


def rows() -> dict[str, str]:
    """Keys and descriptions of docs/values.md."""
    lines = (ROOT / "docs/values.md").read_text().splitlines()
    found = [re.match(r"\| `([^`]+)` \|.*\| ([^|]*) \|$", line.replace(r"\|", "/")) for line in lines]
    return {match[1]: match[2].strip() for match in found if match}


@pytest.mark.parametrize("key", sorted(keys(VALUES)))
def test_a_key_is_described_and_stands_in_all_options(key: str) -> None:
    parents = [".".join(key.split(".")[:depth]) for depth in range(len(key.split(".")), 1, -1)]
    told = [rows()[parent] for parent in parents if parent in rows()]
    assert told, f"docs/values.md hasn't {key}"
    assert told[0], f"{key} has no description"
    get(yaml.safe_load((ROOT / "values/all-options.yaml").read_text()), key)


# What to change a key to, and others with it, where its default is what all-options has or shows nothing.
OTHERWISE: dict[str, list[str]] = {
    "bridge.enabled": ["bridge.enabled=false"],
    "experiment.algorithm.custom": ["experiment.algorithm.name=ours", "experiment.algorithm.custom=true"],
    "experiment.cronJob.nodeSelector": ["experiment.cronJob.nodeSelector.disk=ssd"],  # by default, the trainer's
    "experiment.cronJob.runtimeClassName": ["experiment.cronJob.runtimeClassName=kata"],
    "experiment.cronJob.tolerations": ["experiment.cronJob.tolerations[0].key=other"],
    "experiment.earlyStopping.algorithm": ["experiment.earlyStopping.algorithm=ours"],
    "experiment.earlyStopping.enabled": ["experiment.earlyStopping.enabled=false"],
    "experiment.enabled": ["experiment.enabled=false"],
    "experiment.metricsCollector.customCollector": ["experiment.metricsCollector.customCollector.image=x"],
    "experiment.nasConfig": ["experiment.nasConfig.graphConfig.numLayers=1"],
    "experiment.seed": ["experiment.trainer.args.seed=null", "experiment.seed=true"],
    "experiment.trialTemplate.configMap": ["experiment.trialTemplate.configMap.configMapName=x"],
    "experiment.trialTemplate.trialParameters": ["experiment.trialTemplate.trialParameters.lr.reference=lr"],
    "experiment.trialTemplate.trialSpec": ["experiment.trialTemplate.trialSpec.kind=Job"],
    "global.claim.colocate": ["global.claim.accessMode=ReadWriteOnce", "global.claim.colocate=true"],
    "global.claim.existing": ["global.claim.existing=theirs"],
    "global.networkPolicy.enabled": ["global.networkPolicy.enabled=false"],
    "global.image.tag": ["bridge.image.tag=", "global.image.tag=v9"],
    "serving.enabled": ["serving.enabled=false"],
    "serving.replicas": ["serving.autoscaling.enabled=false", "serving.replicas=7"],
    "storage.enabled": ["storage.enabled=false"],
}
NEEDS_A_CLUSTER = {"global.checkCluster"}  # tests/chart/test_guards.py


def outcome(*settings: str, values: Object | None = None) -> str:
    """What helm prints, objects or the chart's own refusal, for all-options with changes."""
    given, stdin = words(values, settings) if values else words("all-options", ("batch.enabled=true", *settings))
    result = run_helm("template", "x", str(CHART), *given, stdin=stdin)
    assert result.returncode == 0 or "\nERROR: " in result.stderr, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("key", sorted(keys(VALUES) - NEEDS_A_CLUSTER))
def test_a_key_changes_what_is_rendered_or_is_what_a_guard_tells_of(key: str) -> None:
    if settings := OTHERWISE.get(key):
        assert outcome(*settings) != outcome(*settings[:-1])
    else:
        values = yaml.safe_load((ROOT / "values/all-options.yaml").read_text())
        values["batch"]["enabled"] = True
        folder, name = key.rsplit(".", 1)
        get(values, folder)[name] = get(VALUES, key)
        assert outcome(values=values) != outcome()


@pytest.mark.parametrize("part", sorted(VALUES))
def test_no_template_reads_a_value_that_is_not_declared(part: str) -> None:
    known = {key.rsplit(".", cut)[0] for key in keys(VALUES) for cut in range(6)}
    own = CHART / "charts" / part / "templates" if part != "global" else CHART / "templates"
    for path in own.glob("**/*.*"):
        for read in re.findall(r"\.Values\.([A-Za-z]+(?:\.[A-Za-z]+)*)", path.read_text()):
            assert {read, f"{part}.{read}"} & known, f"{path.name} reads .Values.{read}"


def test_null_takes_a_default_away_or_is_refused_with_the_keys_name() -> None:
    """Each null alone: a template that can't do without the key would break."""
    allowed, refused = set(), set()
    for key in sorted(keys(VALUES) | {".".join(key.split(".")[:-1]) for key in keys(VALUES)} - set(VALUES)):
        needed = schema_of(key.rsplit(".", 1)[0]).get("required", [])
        (refused if key.rsplit(".", 1)[1] in needed else allowed).add(key)
    assert len(refused) > 30
    assert len(allowed) > 60
    groups: dict[str, list[str]] = {}
    for key in sorted(allowed - {"experiment.parameters"}):  # a guard asks for these
        groups.setdefault(key.split(".")[0], []).append(f"{key}=null")
    for settings in groups.values():
        render("iris", *EVERYTHING, *settings, "experiment.trainer.image.repository=x")
    said = refusal(*(f"{key}=null" for key in refused if not any(o != key and o.startswith(key) for o in refused)))
    assert "missing propert" in said or "is required" in said


def schema_of(path: str) -> Object:
    node: Object = json.loads((CHART / "values.schema.json").read_text())
    for key in path.split("."):
        node = node["properties"][key]
    return node
