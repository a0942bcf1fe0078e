"""The Experiment is what Katib takes, and what it does with it is what the search means."""

import re

import pytest
from katib import refusals
from rendering import PRESETS, experiment, render, trial_pod


def test_the_experiment_is_what_katib_users_know() -> None:
    spec = experiment(render("mnist"))["spec"]
    assert (spec["maxTrialCount"], spec["parallelTrialCount"], spec["maxFailedTrialCount"]) == (5, 2, 3)
    assert spec["objective"] == {
        "type": "maximize",
        "goal": 0.99,
        "objectiveMetricName": "accuracy",
        "additionalMetricNames": ["loss"],
        "metricStrategies": [{"name": "accuracy", "value": "max"}, {"name": "loss", "value": "min"}],
    }
    assert spec["algorithm"]["algorithmName"] == "random"
    settings = {s["name"]: s["value"] for s in spec["earlyStopping"]["algorithmSettings"]}
    assert settings == {"min_trials_required": "1", "start_step": "2"}
    assert spec["resumePolicy"] == "LongRunning"
    assert spec["trialTemplate"]["retain"] is True
    spaces = {p["name"]: (p["parameterType"], p["feasibleSpace"]) for p in spec["parameters"]}
    assert spaces == {
        "layers": ("int", {"min": "1", "max": "4"}),
        "units": ("int", {"min": "64", "max": "256"}),
        "lr": ("double", {"min": "0.0005", "max": "0.01"}),
    }


def test_each_trial_exports_to_a_folder_of_its_own_on_the_claim() -> None:
    found = experiment(render("iris"))
    template, pod = found["spec"]["trialTemplate"], trial_pod(render("iris"))
    references = {p["name"]: p["reference"] for p in template["trialParameters"]}
    assert references.pop("trialName") == "${trialSpec.Name}"
    container = pod["containers"][0]
    assert (container["name"], container["command"]) == (template["primaryContainerName"], ["python3", "/app/train.py"])
    assert (
        f"--export-path=/model/iris/trials/{found['metadata']['name']}/${{trialParameters.trialName}}"
        in container["args"]
    )
    for name, reference in references.items():
        assert reference == name
        assert f"--{name}=${{trialParameters.{name}}}" in container["args"]
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes[mounts["/model"]]["persistentVolumeClaim"] == {"claimName": "x-models"}


def test_a_trial_is_a_job_that_never_starts_again_and_ends() -> None:
    job = experiment(render("iris"))["spec"]["trialTemplate"]["trialSpec"]
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 3600
    assert job["spec"]["ttlSecondsAfterFinished"] == 60
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("preset", PRESETS)
def test_katib_takes_the_experiment_of_every_preset(preset: str) -> None:
    assert refusals(experiment(render(preset))) == []


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("epoch=7 loss=0.0712 accuracy=0.978", ["0.978", "0.0712"]),
        ("epoch=7 loss=7.1e-05 accuracy=1.0", ["1.0", "7.1e-05"]),
        ("2026-11-28T05:41:09.080086Z epoch=7 loss=0.0712 accuracy=0.978", ["0.978", "0.0712"]),
        ("  epoch=7 loss=0.0712 accuracy=0.978", [None, None]),
        ("INFO epoch=7 loss=0.0712 accuracy=0.978", [None, None]),
        ("INFO accuracy=1.5 loss=0.1", [None, None]),
        ("epoch=7 loss=nan accuracy=nan", [None, None]),
        ("epoch=7 val-loss=0.1 my_accuracy=0.5", [None, None]),
    ],
)
def test_katib_reads_the_epoch_line_and_no_other(line: str, read: list[str | None]) -> None:
    formats = experiment(render("iris"))["spec"]["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]
    matches = [re.search(pattern, line) for pattern in formats]
    assert [match and match[2] for match in matches] == read
    assert [match[1] for match in matches if match] == ["accuracy", "loss"][: sum(map(bool, matches))]


def test_a_metrics_format_has_two_outer_groups_as_katib_asks() -> None:
    for pattern in experiment(render("iris"))["spec"]["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]:
        depth = outer = 0
        for character in re.sub(r"\\.|\[[^]]*\]", "", pattern):
            outer += character == "(" and depth == 0
            depth += (character == "(") - (character == ")")
        assert outer == 2


def test_large_numbers_stay_as_a_person_writes_them() -> None:
    settings = ("experiment.trainer.args.samples=1000000", "experiment.parameters.units.max=3000000")
    objects = render("iris", *settings)
    assert "--samples=1000000" in trial_pod(objects)["containers"][0]["args"]
    (units,) = [p for p in experiment(objects)["spec"]["parameters"] if p["name"] == "units"]
    assert units["feasibleSpace"]["max"] == "3000000"


def test_output_of_a_trial_is_shown_by_kubectl_logs() -> None:
    job = experiment(render("iris"))["spec"]["trialTemplate"]["trialSpec"]
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kubectl.kubernetes.io/default-container"] == "metrics-logger-and-collector"


@pytest.mark.parametrize("key", ["goal", "additionalMetrics", "strategies"])
def test_null_takes_a_default_of_the_objective_away(key: str) -> None:
    katib = {"goal": "goal", "additionalMetrics": "additionalMetricNames", "strategies": "metricStrategies"}[key]
    assert katib in experiment(render("iris"))["spec"]["objective"]
    assert katib not in experiment(render("iris", f"experiment.objective.{key}=null"))["spec"]["objective"]
