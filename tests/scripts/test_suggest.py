from collections.abc import Callable
from typing import Any

import pytest
from nas.errors import NasError
from nas.experiment import Experiment
from nas.suggest import ALGORITHMS, Suggester

SPACE = [
    {"name": "layers", "parameterType": "int", "feasibleSpace": {"min": "1", "max": "7", "step": "2"}},
    {"name": "lr", "parameterType": "double", "feasibleSpace": {"min": "0.1", "max": "0.9", "step": "0.2"}},
    {"name": "activation", "parameterType": "categorical", "feasibleSpace": {"list": ["relu", "tanh"]}},
    {"name": "size", "parameterType": "discrete", "feasibleSpace": {"list": ["16", "64"]}},
]
LOG = {"min": "0.00001", "max": "0.1", "distribution": "logUniform"}
Manifest = Callable[..., dict[str, Any]]


FIRST = {"layers": "3", "lr": "0.3", "activation": "tanh", "size": "64"}


def suggester(
    manifest: Manifest, algorithm: str, seed: str = "1", earlier: Any = (), space: Any = SPACE, first: Any = None
) -> Suggester:
    settings = [{"name": "random_state", "value": seed}]
    described = {"algorithmName": algorithm, "algorithmSettings": settings}
    return Suggester(Experiment(manifest(algorithm=described, parameters=space)), list(earlier), first)


def draws(suggester: Suggester, count: int = 12) -> list[dict[str, str]]:
    found = []
    for index in range(count):
        if (point := suggester.ask()) is None:
            break
        suggester.tell(point, None if index % 5 == 4 else float(point["lr"]))
        found.append(point)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_proposes_points_of_the_space(manifest: Manifest, algorithm: str) -> None:
    for point in draws(suggester(manifest, algorithm)):
        assert int(point["layers"]) in (1, 3, 5, 7)
        assert round(float(point["lr"]), 6) in (0.1, 0.3, 0.5, 0.7, 0.9)
        assert point["activation"] in ("relu", "tanh")
        assert point["size"] in ("16", "64")


@pytest.mark.parametrize("algorithm", ["random", "tpe", "sobol"])
def test_a_seed_settles_what_is_proposed(manifest: Manifest, algorithm: str) -> None:
    first, again, other = (draws(suggester(manifest, algorithm, seed)) for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trials_that_run_at_the_same_time_never_get_the_same_suggestion(manifest: Manifest, algorithm: str) -> None:
    asked = suggester(manifest, algorithm)
    points = []
    while (point := asked.ask()) is not None and len(points) < 30:  # none of them is told how it went
        points.append(tuple(point.items()))
    assert len(points) == len(set(points)) == 30


@pytest.mark.parametrize("algorithm", ["random", "tpe", "sobol"])
def test_a_small_space_is_exhausted_without_a_point_tried_twice(manifest: Manifest, algorithm: str) -> None:
    points = draws(suggester(manifest, algorithm, space=SPACE[1:3]), 50)
    assert len(points) == len({tuple(point.items()) for point in points}) == 10


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_current_models_parameters_are_tried_first_and_once_but_in_a_grid(
    manifest: Manifest, algorithm: str
) -> None:
    points = draws(suggester(manifest, algorithm, first=FIRST))
    assert (points[0] == {**FIRST, "lr": points[0]["lr"]}) == (algorithm != "grid")
    assert points.count(points[0]) == 1
    assert points != draws(suggester(manifest, algorithm)) or algorithm == "grid"


@pytest.mark.parametrize(
    "change", [{"layers": "2"}, {"layers": "9"}, {"lr": "0.35"}, {"activation": "elu"}, {"size": ""}, {"lr": "much"}]
)
def test_parameters_outside_the_space_are_not_tried(manifest: Manifest, change: dict[str, str]) -> None:
    assert draws(suggester(manifest, "random", first=FIRST | change)) == draws(suggester(manifest, "random"))


def test_a_resumed_search_draws_anew(manifest: Manifest) -> None:
    first = draws(suggester(manifest, "random"), 3)
    resumed = suggester(manifest, "random", earlier=[(point, 0.5) for point in first])
    assert draws(resumed, 3) != first


def test_tpe_learns_where_the_objective_is_better(manifest: Manifest) -> None:
    space = [{"name": "lr", "parameterType": "double", "feasibleSpace": {"min": "0", "max": "1"}}]
    points = draws(suggester(manifest, "tpe", space=space), 60)
    assert sum(float(point["lr"]) for point in points[30:]) / 30 > 0.75


def test_a_logarithmic_range_is_drawn_evenly_by_magnitude(manifest: Manifest) -> None:
    space = [{"name": "lr", "parameterType": "double", "feasibleSpace": LOG}]
    points = draws(suggester(manifest, "random", space=space), 40)
    assert 10 < sum(float(point["lr"]) < 0.001 for point in points) < 30


def test_a_grid_has_every_point_once_and_a_resumed_one_only_those_left(manifest: Manifest) -> None:
    points = draws(suggester(manifest, "grid"), 1000)
    assert len(points) == len({tuple(point.items()) for point in points}) == 4 * 5 * 2 * 2
    rest = draws(suggester(manifest, "grid", earlier=[(point, 0.5) for point in points[:70]]), 1000)
    assert rest == points[70:]


def test_a_grid_over_a_range_without_step_says_what_to_do(manifest: Manifest) -> None:
    space = [{"name": "lr", "parameterType": "double", "feasibleSpace": {"min": "0", "max": "1"}}]
    with pytest.raises(NasError, match="parameter lr is a double without step; give it a step"):
        suggester(manifest, "grid", space=space)


@pytest.mark.parametrize("algorithm", ["hyperband", "magic"])
def test_an_algorithm_that_cannot_run_here_is_told_with_those_that_can(manifest: Manifest, algorithm: str) -> None:
    with pytest.raises(NasError, match=f"'{algorithm}' can't run on this machine; these can: random, "):
        suggester(manifest, algorithm)


def test_a_distribution_that_cannot_be_drawn_is_told(manifest: Manifest) -> None:
    space = {"min": "0", "max": "1", "distribution": "normal"}
    with pytest.raises(NasError, match="parameter lr: a local run knows the distributions uniform and logUniform"):
        suggester(manifest, "random", space=[{"name": "lr", "parameterType": "double", "feasibleSpace": space}])
