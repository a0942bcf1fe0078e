"""Names, and what an upgrade changes."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from rendering import CHART, EVERYTHING, PRESETS, Object, Objects, experiment, one, render, run_helm, trial_pod



def name_and_seeds(objects: list[dict[str, Any]]) -> tuple[str, str, str]:
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
    shutil.copytree(ROOT / "charts/nas", newer)
    for path in newer.glob("**/Chart.yaml"):
        path.write_text(path.read_text().replace("0.1.0", "9.9.9"))
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
