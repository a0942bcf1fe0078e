"""Values the chart refuses: by the schema, by a sentence of validate.yaml, or after a look at the cluster."""

import pytest
from rendering import refusal



@pytest.mark.parametrize(
    "setting",
    [
        "experimnt.maxTrials=3",
        "experiment.maxTrails=3",
        "experiment.trainer.imgae.repository=x",
        "experiment.parameters.lr.mim=0.1",
        "batch.inputz=x",
        "global.modle=iris",
        "experiment.maxTrials=many",
        "experiment.maxTrials=0",
        "experiment.algorithm.name=magic",
        "experiment.parameters.lr.type=real",
        "experiment.parameters.lr.step=-1",
        "experiment.trainer.args.note=$(reboot)",
        "experiment.trainer.args.note=a b",
        "experiment.trainer.args.note=a;b",
        "global.model=../x",
        "serving.service.port=70000",
    ],
)
def test_a_value_that_is_mistyped_or_of_a_wrong_type_is_refused(setting: str) -> None:
    assert "values don't meet the specifications of the schema" in refusal(setting)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["experiment.parallelTrials=13"], "experiment.parallelTrials (13) is above experiment.maxTrials (12)"),
        (["experiment.maxFailedTrials=13"], "experiment.maxFailedTrials (13) is above experiment.maxTrials (12)"),
        (["experiment.parameters.lr.min=1"], "experiment.parameters.lr has min (1) above max (0.05)"),
        (["experiment.parameters.decay.type=double"], "experiment.parameters.decay is a double: give it min and max"),
        (["experiment.parameters.lr.step=1"], "experiment.parameters.lr has a step (1) wider than its range"),
        (["experiment.parameters.lr.list={a}"], "experiment.parameters.lr is a double and has a list"),
        (["experiment.parameters.lr.type=categorical"], "experiment.parameters.lr is categorical: give it a list"),
        (
            ["experiment.parameters.lr.type=categorical", "experiment.parameters.lr.list={a}"],
            "experiment.parameters.lr is categorical and has min, max or step",
        ),
        (
            ["experiment.parameters.lr.distribution=logUniform", "experiment.parameters.lr.min=0"],
            "experiment.parameters.lr is logUniform: its min must be above 0",
        ),
        (["experiment.algorithm.name=grid"], "algorithm grid needs a step for the double lr"),
        (["experiment.trainer.args.lr=1"], "lr is in experiment.parameters and in experiment.trainer.args"),
        (["experiment.trainer.image.repository="], "experiment.trainer.image.repository is empty"),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_a_sentence(
    settings: list[str], sentence: str
) -> None:
    assert f"ERROR: {sentence}" in refusal(*settings)


def test_a_release_name_that_leaves_no_room_for_the_hash_is_refused() -> None:
    assert "ERROR: the release name" in refusal(release="a" * 32)


def test_a_search_without_parameters_is_refused() -> None:
    assert "ERROR: experiment.parameters is empty" in refusal(values="")

