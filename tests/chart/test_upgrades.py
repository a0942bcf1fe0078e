"""Names, and what an upgrade changes."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from rendering import CHART, EVERYTHING, PRESETS, Objects, experiment, one, render, run_helm, trial_pod

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.yaml"))  # iris as earlier versions of the chart rendered it
# What Kubernetes and Katib let no one change in an object that is there.
FIXED = {
    "Deployment": ["selector"],
    "StatefulSet": ["selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"],
    "PersistentVolumeClaim": ["accessModes", "storageClassName", "volumeMode", "resources"],
    "Job": ["completions", "completionMode", "selector", "template", "podFailurePolicy", "backoffLimitPerIndex"],
    "Service": ["clusterIP"],
}


def name_and_seeds(objects: Objects) -> tuple[str, str, str]:
    found = experiment(objects)
    settings = {s["name"]: s["value"] for s in found["spec"]["algorithm"]["algorithmSettings"]}
    (seed,) = [a for a in trial_pod(objects)["containers"][0]["args"] if a.startswith("--seed=")]
    return found["metadata"]["name"], settings["random_state"], seed


@pytest.mark.parametrize(
    "setting",
    [
        "experiment.run=2",
        "experiment.parameters.units.max=33",
        "experiment.trainer.args.epochs=51",
        "experiment.algorithm.name=tpe",
        "experiment.objective.goal=0.98",
        "global.image.tag=v2",
    ],
)
def test_another_search_has_another_name_and_another_seed(setting: str) -> None:
    assert not set(name_and_seeds(render("iris"))) & set(name_and_seeds(render("iris", setting)))


@pytest.mark.parametrize("setting", ["maxTrials=20", "parallelTrials=1", "maxFailedTrials=5"])
def test_what_katib_lets_one_edit_keeps_the_name(setting: str) -> None:
    assert name_and_seeds(render("iris", f"experiment.{setting}")) == name_and_seeds(render("iris"))


def test_a_newer_chart_changes_neither_the_search_nor_any_pod(tmp_path: Path) -> None:
    newer = tmp_path / "nas"
    shutil.copytree(CHART, newer)
    for path in newer.glob("**/Chart.yaml"):
        path.write_text(re.sub(r"\b(version|appVersion): [0-9.]+", r"\1: 9.9.9", path.read_text()))
    before, after = render("iris", *EVERYTHING), render("iris", *EVERYTHING, chart=newer)
    assert experiment(before)["spec"] == experiment(after)["spec"]
    assert [item["metadata"]["name"] for item in before] == [item["metadata"]["name"] for item in after]
    assert [item["spec"] for item in before] == [item["spec"] for item in after]


def test_two_releases_in_one_namespace_share_no_name() -> None:
    one_release, other = (
        {(item["kind"], item["metadata"]["name"]) for item in render("iris", *EVERYTHING, release=release)}
        for release in ("nas", "iris-nas")
    )
    assert not one_release & other


def test_names_fit_into_katibs_forty_characters() -> None:
    assert len(experiment(render("iris", release="a" * 31))["metadata"]["name"]) == 40


def test_a_name_and_seeds_that_are_given_are_taken() -> None:
    settings = (
        "experiment.name=mine",
        "experiment.trainer.args.seed=5",
        "experiment.algorithm.settings.random_state=7",
    )
    assert name_and_seeds(render("iris", *settings)) == ("mine", "7", "--seed=5")


def test_a_batch_job_is_a_new_one_when_its_spec_is() -> None:
    names = {
        one(render("iris", *EVERYTHING, *more), "Job")["metadata"]["name"]
        for more in ([], ["experiment.maxTrials=20"], ["batch.print=5"])
    }
    assert len(names) == 2


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_an_upgrade_from_an_earlier_chart_changes_nothing_that_can_not_change(path: Path) -> None:
    before = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(path.read_text())}
    now = render("iris", *EVERYTHING, release="iris-nas")
    after = {(o["kind"], o["metadata"]["name"]): o for o in now}
    gone = {kind for kind, _ in before.keys() - after.keys()}
    assert gone <= {"Job", "Experiment"}, "those of another spec have another name"
    for key in before.keys() & after.keys():
        for field in FIXED.get(key[0], []):
            assert before[key]["spec"].get(field) == after[key]["spec"].get(field), f"{key}: {field}"


# Chart 0.1.0 hashed the text of the search, so that its name changes once: an upgrade from it searches anew.
@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem != "0.1.0"], ids=lambda path: path.stem)
def test_an_upgrade_from_an_earlier_chart_is_the_same_search(path: Path) -> None:
    (before,) = [o for o in yaml.safe_load_all(path.read_text()) if o["kind"] == "Experiment"]
    after = experiment(render("iris", release="iris-nas"))
    assert before["metadata"]["name"] == after["metadata"]["name"]
    assert before["spec"] == after["spec"]


def test_there_is_a_golden_file_of_an_earlier_chart_and_of_this_one() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert version in [path.stem for path in GOLDEN]
    assert len(GOLDEN) >= 2


@pytest.mark.parametrize("preset", PRESETS)
def test_a_package_of_the_chart_installs_the_same(preset: str, package: Path) -> None:
    assert render(preset, *EVERYTHING, chart=package) == render(preset, *EVERYTHING)


def test_a_package_of_the_chart_brings_its_readme(package: Path) -> None:
    assert "helm install" in run_helm("show", "readme", str(package)).stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as `make package` writes it."""
    folder = tmp_path_factory.mktemp("package")
    result = run_helm("package", str(CHART), "--destination", str(folder))
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.tgz")
    return path
