"""Which parameters to try next: Katib's algorithms by Optuna's samplers."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.experiment import Experiment

ALGORITHMS = ("random", "tpe", "multivariate-tpe", "cmaes", "sobol", "grid", "bayesianoptimization")
Outcome = tuple[dict[str, str], float | None]
Space = dict[str, BaseDistribution]
DRAWS = 100  # for a point that wasn't tried; the last nine tenths at random

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE, Sobol, Gauss


class Suggester:
    """Proposes parameter assignments (strings, as Katib passes them) and learns from trials' objective values.

    `earlier` are the trials of a resumed run: their assignments and objective values (None: failed). `first` is what
    a new run tries before all others, if it is a point of the space; a grid has its own order.
    Raises NasError for an algorithm or a search space that can't be done here.
    """

    def __init__(self, experiment: Experiment, earlier: list[Outcome], first: dict[str, str] | None = None) -> None:
        self._space = space(experiment)
        # Every point that was tried or is being tried, with Optuna's number where the outcome is still to be told.
        self._tried: dict[frozenset[tuple[str, str]], int | None] = {_key(point): None for point, _ in earlier}
        self._grid: Iterator[dict[str, str]] | None = None
        if experiment.algorithm == "grid":  # Optuna's grid can only be walked by its own loop
            points = itertools.product(*(_points(name, d) for name, d in self._space.items()))
            self._grid = (dict(zip(self._space, map(_text, point), strict=True)) for point in points)
            return
        given = experiment.settings.get("random_state")
        # A resumed run draws anew instead of repeating its first draws.
        seed = (int(given) + len(earlier)) % 2**32 if given is not None else None
        self._study, self._sampler = study(experiment, earlier), _sampler(experiment, seed)
        self._anywhere = optuna.samplers.RandomSampler(seed)
        if first and not earlier:
            with contextlib.suppress(ValueError):  # it is no point of this space
                self._study.enqueue_trial(frozen(self._space, first, None).params)

    def ask(self) -> dict[str, str] | None:
        """The assignments to try next; None when no new point is left."""
        if self._grid:
            return next((point for point in self._grid if _key(point) not in self._tried), None)
        for draw in range(DRAWS):
            # All trials of a search train with one seed: a point that was tried would give the same model again.
            self._study.sampler = self._sampler if draw < DRAWS // 10 else self._anywhere
            trial = self._study.ask(self._space)
            point = {name: _text(value) for name, value in trial.params.items()}
            if _key(point) not in self._tried:
                self._tried[_key(point)] = trial.number
                return point
            self._study.tell(trial.number, state=TrialState.FAIL)
        return None

    def tell(self, assignments: dict[str, str], value: float | None) -> None:
        """The objective value that assignments of `ask` came to, None when their trial failed; the first word holds."""
        number = self._tried.get(_key(assignments))
        if number is not None:
            self._tried[_key(assignments)] = None
            self._study.tell(number, value, state=TrialState.FAIL if value is None else None)


def study(experiment: Experiment, outcomes: list[Outcome]) -> optuna.Study:
    """Trials as Optuna's study: their assignments and objective values (None: failed)."""
    made = optuna.create_study(direction="maximize" if experiment.maximize else "minimize")
    made.add_trials([frozen(space(experiment), assignments, value) for assignments, value in outcomes])
    return made


def frozen(among: Space, assignments: dict[str, str], value: float | None) -> FrozenTrial:
    """Raises ValueError for assignments that are no point of the space."""
    params = {name: _parse(distribution, assignments[name]) for name, distribution in among.items()}
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    return optuna.trial.create_trial(params=params, distributions=among, value=value, state=state)


def _key(assignments: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(assignments.items())


def _sampler(experiment: Experiment, seed: int | None) -> optuna.samplers.BaseSampler:
    samplers, settings = optuna.samplers, experiment.settings
    startup = int(settings.get("n_initial_points", settings.get("n_startup_trials", 10)))
    match experiment.algorithm:
        case "random":
            return samplers.RandomSampler(seed)
        case "tpe" | "multivariate-tpe" as name:
            joint, liar = name == "multivariate-tpe", experiment.parallel > 1
            return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=joint, constant_liar=liar)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed)
        case "sobol":
            return samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
        case "bayesianoptimization":
            try:
                import torch  # noqa: F401 - Optuna's Gaussian process needs it
            except ImportError as error:
                hint = "an MNIST search sets it up; or choose tpe"
                raise NasError(f"algorithm bayesianoptimization needs torch on this machine: {hint}") from error
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    raise NasError(f"algorithm {experiment.algorithm!r} can't run on this machine; these can: {', '.join(ALGORITHMS)}")


def space(experiment: Experiment) -> Space:
    """The search space as Optuna's. Raises NasError for what it can't draw from."""
    return {name: _distribution(name, feasible) for name, feasible in experiment.space.items()}


def _distribution(name: str, feasible: dict[str, Any]) -> BaseDistribution:
    drawn = feasible.get("distribution", "uniform")
    if drawn not in ("uniform", "logUniform"):
        raise NasError(f"parameter {name}: a local run knows the distributions uniform and logUniform")
    log = drawn == "logUniform"
    match feasible["type"]:
        case "int":
            return IntDistribution(int(feasible["min"]), int(feasible["max"]), log, int(feasible.get("step") or 1))
        case "double":
            step = float(feasible["step"]) if feasible.get("step") and not log else None
            return FloatDistribution(float(feasible["min"]), float(feasible["max"]), log, step)
        case "categorical" | "discrete":
            return CategoricalDistribution([str(value) for value in feasible["list"]])
    raise NasError(f"parameter {name}: unknown type {feasible['type']!r}")


def _points(name: str, distribution: Any) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None:
        raise NasError(f"algorithm grid: parameter {name} is a double without step; give it a step or a list")
    count = int((distribution.high - distribution.low) / distribution.step + 1e-9)
    return [distribution.low + index * distribution.step for index in range(count + 1)]


def _parse(distribution: BaseDistribution, text: str) -> Any:
    return {IntDistribution: int, FloatDistribution: float}.get(type(distribution), str)(text)


def _text(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)
