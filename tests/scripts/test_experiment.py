from collections.abc import Callable
from typing import Any

import pytest
from nas.errors import NasError
from nas.experiment import Experiment, Observation, Rule

Manifest = Callable[..., dict[str, Any]]


def observed(experiment: Experiment, *lines: str) -> Observation:
    observation = Observation()
    for line in lines:
        experiment.observe(line, observation)
    return observation


@pytest.mark.parametrize(
    "line",
    ["INFO accuracy=1.5", "  epoch=1 accuracy=0.5", "epoch=1 accuracy=nan", "epoch=1 my-accuracy=0.5", "accuracy=0.5"],
)
def test_only_an_epochs_line_says_something_of_the_metrics(manifest: Manifest, line: str) -> None:
    assert observed(Experiment(manifest()), line) == {}


def test_every_number_of_an_epochs_line_is_read_in_full(manifest: Manifest) -> None:
    observation = observed(Experiment(manifest()), "epoch=7 loss=1.5e-05 accuracy=0.9780000000000001")
    assert observation == {"accuracy": [0.9780000000000001], "loss": [1.5e-05]}


@pytest.mark.parametrize(("strategy", "value"), [("max", 0.9), ("min", 0.2), ("latest", 0.4)])
def test_the_strategy_says_which_of_a_trials_values_counts(manifest: Manifest, strategy: str, value: float) -> None:
    objective = manifest()["spec"]["objective"] | {"metricStrategies": [{"name": "accuracy", "value": strategy}]}
    experiment = Experiment(manifest(objective=objective))
    assert experiment.value(observed(experiment, *(f"epoch=1 accuracy={v}" for v in (0.2, 0.9, 0.4)))) == value


def test_a_search_that_minimises_turns_better_and_goal_around(manifest: Manifest) -> None:
    objective = {"type": "minimize", "objectiveMetricName": "loss", "goal": 0.1}
    experiment = Experiment(manifest(objective=objective))
    assert experiment.better(0.2, 0.3)
    assert experiment.reached(0.1)
    assert not experiment.reached(0.11)
    assert experiment.value(observed(experiment, "epoch=1 loss=0.5", "epoch=2 loss=0.7")) == 0.5


def test_medianstop_compares_with_the_mean_of_first_means_once(manifest: Manifest) -> None:
    settings = [{"name": "min_trials_required", "value": "2"}, {"name": "start_step", "value": "2"}]
    experiment = Experiment(manifest(earlyStopping={"algorithmName": "medianstop", "algorithmSettings": settings}))
    one = observed(experiment, "epoch=1 accuracy=0.1", "epoch=2 accuracy=0.3", "epoch=3 accuracy=0.9")
    two = observed(experiment, "epoch=1 accuracy=0.4", "epoch=2 accuracy=0.6")
    assert experiment.rule([one]) is None
    rule = experiment.rule([one, two])
    assert rule == Rule(pytest.approx(0.35), 2)
    below = ("epoch=1 accuracy=0.34", "epoch=2 accuracy=0.2")
    assert not experiment.stops(rule, observed(experiment, below[0]))
    assert experiment.stops(rule, observed(experiment, *below))
    assert not experiment.stops(rule, observed(experiment, *below, "epoch=3 accuracy=0.1"))
    assert not experiment.stops(rule, observed(experiment, "epoch=1 accuracy=0.36", "epoch=2 accuracy=0.1"))


def test_a_trials_job_has_its_own_name_and_values(manifest: Manifest) -> None:
    job = Experiment(manifest()).job("toy-abc", {"value": "0.25"})
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words == ["--value=0.25", "--epochs=4", "--export-path=/model/toy/trials/toy/toy-abc"]
    assert job["metadata"]["name"] == "toy-abc"


def test_the_epochs_of_a_trial_are_those_of_its_command_line(manifest: Manifest) -> None:
    assert Experiment(manifest()).epochs == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"earlyStopping": {"algorithmName": "other"}}, "stops early by medianstop alone"),
        ({"metricsCollectorSpec": {"collector": {"kind": "File"}}}, "by the collector StdOut"),
        ({"objective": {"type": "maximize"}}, "objectiveMetricName"),
        ({"trialTemplate": {}}, "trialParameters"),
    ],
)
def test_an_experiment_that_cannot_run_here_is_told(manifest: Manifest, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(NasError, match=message):
        Experiment(manifest(**spec))
