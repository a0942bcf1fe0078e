"""Which parameters to try next: Katib's algorithms by Optuna's samplers."""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

from nas.errors import NasError
from nas.experiment import Experiment, Parameter

ALGORITHMS = ("random", "tpe", "multivariate-tpe", "cmaes", "sobol", "grid", "bayesianoptimization")
Outcome = tuple[dict[str, str], float | None]
DRAWS = 100  # for a point that wasn't tried; the last nine tenths at random


class Suggester:
    """Proposes parameter assignments (strings, as Katib passes them) and learns from trials' objective values.

    `earlier` are the trials of a resumed run: their assignments and objective values (None: failed). `first` is what
    a new run tries before all others, if it is a point of the space; a grid has its own order.
    Raises NasError for an algorithm or a search space that can't be done here.
    """

    def __init__(self, experiment: Experiment, earlier: list[Outcome], first: dict[str, str] | None = None) -> None:
        optuna = self._optuna = _library()
        self._space = {p.name: _distribution(optuna, p) for p in experiment.parameters}
        self._tried = [assignments for assignments, _ in earlier]  # or being tried
        self._grid: Iterator[dict[str, str]] | None = None
        if experiment.algorithm == "grid":  # Optuna's grid can only be walked by its own loop
            points = itertools.product(*(_points(name, d) for name, d in self._space.items()))
            self._grid = (dict(zip(self._space, map(_text, point), strict=True)) for point in points)
            return
        self._study, self._sampler = study(experiment, earlier), _sampler(optuna, experiment, len(earlier))
        self._anywhere = optuna.samplers.RandomSampler(_seed(experiment, len(earlier)))
        if first and not earlier and all(_fits(d, first.get(name, "")) for name, d in self._space.items()):
            self._study.enqueue_trial({name: _parse(d, first[name]) for name, d in self._space.items()})

    def ask(self) -> tuple[int, dict[str, str]] | None:
        """A number to `tell` the outcome by, and the assignments; None when no new point is left."""
        if self._grid:
            point = next((point for point in self._grid if point not in self._tried), None)
            return None if point is None else (-1, point)
        for draw in range(DRAWS):
            # All trials of a search train with one seed: a point that was tried would give the same model again.
            self._study.sampler = self._sampler if draw < DRAWS // 10 else self._anywhere
            trial = self._study.ask(self._space)
            point = {name: _text(value) for name, value in trial.params.items()}
            if point not in self._tried:
                self._tried.append(point)
                return trial.number, point
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, number: int, value: float | None) -> None:
        """The objective value of the trial `ask` gave that number, None when it failed."""
        if not self._grid:
            state = None if value is not None else self._optuna.trial.TrialState.FAIL
            self._study.tell(number, value, state=state)


def _library() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE, Sobol, Gauss
    return optuna


def study(experiment: Experiment, outcomes: list[Outcome]) -> Any:
    """Trials as Optuna's study: their assignments and objective values (None: failed)."""
    optuna = _library()
    space = {p.name: _distribution(optuna, p) for p in experiment.parameters}
    made = optuna.create_study(direction="maximize" if experiment.maximize else "minimize")
    for assignments, value in outcomes:
        params = {name: _parse(space[name], text) for name, text in assignments.items()}
        state = optuna.trial.TrialState.COMPLETE if value is not None else optuna.trial.TrialState.FAIL
        made.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value, state=state))
    return made


def _seed(experiment: Experiment, earlier: int) -> int | None:
    """Of the algorithm. A resumed run draws anew instead of repeating its first draws."""
    given = experiment.settings.get("random_state")
    return (int(given) + earlier) % 2**32 if given is not None else None


def _sampler(optuna: Any, experiment: Experiment, earlier: int) -> Any:
    samplers, settings = optuna.samplers, experiment.settings
    seed = _seed(experiment, earlier)
    startup = {"n_startup_trials": int(settings.get("n_initial_points", settings.get("n_startup_trials", 10)))}
    match experiment.algorithm:
        case "random":
            return samplers.RandomSampler(seed)
        case "tpe" | "multivariate-tpe" as name:
            return samplers.TPESampler(
                seed=seed, multivariate=name != "tpe", constant_liar=experiment.parallel > 1, **startup
            )
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed)
        case "sobol":
            return samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
        case "bayesianoptimization":
            try:
                import torch  # noqa: F401 - Optuna's Gaussian process needs it
            except ImportError as error:
                raise NasError(
                    "algorithm bayesianoptimization needs torch on this machine: run an MNIST search first, which "
                    "sets it up, or choose tpe"
                ) from error
            return samplers.GPSampler(seed=seed, **startup)
    raise NasError(f"algorithm {experiment.algorithm!r} can't run on this machine; these can: {', '.join(ALGORITHMS)}")


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    kinds = optuna.distributions
    log = parameter.distribution == "logUniform"
    if parameter.distribution not in ("uniform", "logUniform"):
        raise NasError(f"parameter {parameter.name}: a local run knows the distributions uniform and logUniform")
    match parameter.type:
        case "int":
            low, high = int(parameter.minimum), int(parameter.maximum)
            return kinds.IntDistribution(low, high, log=log, step=int(parameter.step or 1))
        case "double":
            step = float(parameter.step) if parameter.step and not log else None
            return kinds.FloatDistribution(float(parameter.minimum), float(parameter.maximum), log=log, step=step)
        case "categorical" | "discrete":
            return kinds.CategoricalDistribution(parameter.values)
    raise NasError(f"parameter {parameter.name}: unknown type {parameter.type!r}")


def _points(name: str, distribution: Any) -> list[Any]:
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    if distribution.step is None:
        raise NasError(f"algorithm grid: parameter {name} is a double without step; give it a step or a list")
    count = int((distribution.high - distribution.low) / distribution.step + 1e-9)
    return [distribution.low + index * distribution.step for index in range(count + 1)]


def _fits(distribution: Any, text: str) -> bool:
    """Whether an assignment is a point of the space."""
    try:
        value = _parse(distribution, text)
    except ValueError:
        return False
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    steps = (value - distribution.low) / (distribution.step or 1)
    even = distribution.step is None or abs(steps - round(steps)) < 1e-9
    return bool(distribution.low <= value <= distribution.high and even)


def _parse(distribution: Any, text: str) -> Any:
    if hasattr(distribution, "choices"):
        return text
    return int(text) if isinstance(distribution.low, int) else float(text)


def _text(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)
