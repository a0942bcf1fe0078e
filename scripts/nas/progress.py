"""A search as far as it has come, wherever its trials run: what the view shows."""

import contextlib
import datetime
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from nas.experiment import Experiment, Manifest, Observation, Rule

State = Literal["Running", "Succeeded", "Failed", "EarlyStopped", "MetricsUnavailable"]


@dataclass
class Trial:
    """One trial: what it tries, what it printed, what became of it. Times are seconds since the epoch."""

    name: str
    assignments: dict[str, str]
    rule: Rule | None
    state: State = "Running"
    message: str = ""
    observation: Observation = field(default_factory=dict)
    started: float = 0.0
    ended: float | None = None
    reports: int | None = None  # epochs, where `observation` doesn't have every one of them

    @property
    def short(self) -> str:
        """Its name without the experiment's."""
        return self.name.rsplit("-", 1)[-1]

    @property
    def failed(self) -> bool:
        return self.state in ("Failed", "MetricsUnavailable")

    def epochs(self, metric: str) -> int:
        """Epochs reported so far."""
        return len(self.observation.get(metric, [])) if self.reports is None else self.reports


class Progress:
    """The state of one search."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.trials: list[Trial] = []
        self.state: Literal["Running", "Succeeded", "Failed"] = "Running"
        self.reason = ""
        self.promoted: set[str] = set()  # trials whose models were, as far as that is known
        self.started = time.time()
        self.ended: float | None = None

    def value(self, trial: Trial) -> float | None:
        """A trial's objective so far."""
        return self.experiment.value(trial.observation)

    @property
    def finished(self) -> list[Trial]:
        """Trials that ended with a value, the promoted before others, then those that ended first."""
        ended = [t for t in self.trials if t.state in ("Succeeded", "EarlyStopped") and self.value(t) is not None]
        return sorted(ended, key=lambda trial: (trial.name not in self.promoted, trial.ended or 0.0))

    @property
    def best(self) -> Trial | None:
        """The trial with the best objective so far, of those that ended; among equals the first of `finished`."""
        choose = max if self.experiment.maximize else min
        return choose(self.finished, key=lambda trial: self.value(trial) or 0.0, default=None)


def condition(manifest: Manifest, *types: str) -> Manifest | None:
    """The first of these conditions that an object's status has as True."""
    found = {c["type"]: c for c in manifest.get("status", {}).get("conditions") or [] if c.get("status") == "True"}
    return next((found[name] for name in types if name in found), None)


def read_trials(experiment: Experiment, manifests: Iterable[Manifest], printed: dict[str, str]) -> list[Trial]:
    """Trials from their objects and, by their names, what each printed; in the order they started."""
    trials = [_trial(experiment, m, printed.get(m["metadata"]["name"], "")) for m in manifests]
    return sorted(trials, key=lambda trial: trial.started)


def _trial(experiment: Experiment, manifest: Manifest, printed: str) -> Trial:
    spec: Any = manifest["spec"]
    status = manifest.get("status", {})
    rules = spec.get("earlyStoppingRules")
    trial = Trial(
        name=manifest["metadata"]["name"],
        assignments={a["name"]: a["value"] for a in spec.get("parameterAssignments", [])},
        rule=Rule(float(rules[0]["value"]), int(rules[0].get("startStep", 0))) if rules else None,
    )
    # An early-stopped trial keeps its Running condition; one that was killed may be Failed and MetricsUnavailable both.
    if end := condition(manifest, "EarlyStopped", "Succeeded", "Failed", "MetricsUnavailable"):
        trial.state, trial.message = end["type"], end.get("message", "")
        # Katib gives an early-stopped trial no completionTime.
        when = status.get("completionTime") or end.get("lastTransitionTime")
        trial.ended = seconds(when) if when else time.time()
    trial.started = seconds(status.get("startTime") or manifest["metadata"]["creationTimestamp"])
    for line in printed.splitlines():
        experiment.observe(line, trial.observation)
        if experiment.stops(trial.rule, trial.observation):
            break  # what a stopped trial printed later never counted
    recorded: Observation = {}
    for metric in status.get("observation", {}).get("metrics", []):
        with contextlib.suppress(ValueError):  # Katib says "unavailable"
            recorded[metric["name"]] = [float(metric[key]) for key in ("min", "max", "latest")]
    if experiment.value(recorded) not in (None, experiment.value(trial.observation)):
        trial.observation, trial.reports = recorded, 0  # its output is gone, or isn't all there
    return trial


def seconds(stamp: str) -> float:
    """An RFC 3339 time as seconds since the epoch."""
    return datetime.datetime.fromisoformat(stamp).timestamp()
