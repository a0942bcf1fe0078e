"""What is known of a search when it is looked back at, from its objects and from the store."""

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from modelkit import artifact
from modelkit.store import Store

from nas import suggest
from nas.engine import Places, load, recorded
from nas.errors import NasError
from nas.experiment import Experiment, Manifest
from nas.progress import Trial, read_trial


@dataclass(frozen=True)
class Source:
    """Where a search is told: its Experiment, its Trials, what each of them printed, and the store it fed.

    The objects have Katib's shape, so that those of this machine and of a cluster read alike.
    """

    experiment: Manifest
    trials: list[Manifest]
    printed: Callable[[str], str]  # by the trial's name; empty when nothing is known
    store: Store


def here(places: Places, model: str, name: str | None) -> Source:
    """The search `name` on this machine, or the latest one of `model`. Raises NasError when there is none."""
    for folder, manifest in recorded(places):
        experiment = Experiment(manifest)
        if experiment.name == name if name else experiment.model == model:
            trials = [load(path) for path in (folder / "trials").glob("*.yaml")]
            store = Store(places.store, experiment.model)
            logs = folder / "logs"
            return Source(manifest, trials, lambda trial, logs=logs: _text(logs / f"{trial}.log"), store)  # type: ignore[misc]
    wanted = f"experiment {name}" if name else f"search of model {model!r}"
    there = ", ".join(folder.name for folder, _ in recorded(places)) or "none"
    raise NasError(f"no {wanted} in {places.home / 'runs'} (there: {there}): run one, or name another")


class History:
    """A search read from its source: trials in the order they started, with every value they printed."""

    def __init__(self, source: Source) -> None:
        self.experiment, self.store = Experiment(source.experiment), source.store
        self.status: dict[str, Any] = source.experiment.get("status") or {}
        self.trials = sorted(map(read_trial, source.trials), key=lambda trial: trial.started)
        if not self.trials:
            raise NasError(f"experiment {self.experiment.name} has no trial yet: wait for its first")
        self._jobs = {m["metadata"]["name"]: m["spec"].get("runSpec") for m in source.trials}
        for trial in self.trials:
            for line in source.printed(trial.name).splitlines():
                self.experiment.observe(line, trial.observation)
                if self.experiment.stops(trial.rule, trial.observation):
                    break  # what a stopped trial printed later never counted
        ended = [trial for trial in self.trials if trial.state in ("Succeeded", "EarlyStopped")]
        self.ranked = sorted(
            (trial for trial in ended if self.value(trial) is not None),
            key=lambda trial: self.value(trial) or 0.0,
            reverse=self.experiment.maximize,
        )
        self.best: Trial | None = self.ranked[0] if self.ranked else None
        self.evaluation = self._read(artifact.EVALUATION_FILE, artifact.Evaluation)
        self.manifest = self._read(artifact.MANIFEST_FILE, artifact.Manifest)

    def value(self, trial: Trial) -> float | None:
        """A trial's objective value."""
        return self.experiment.value(trial.observation)

    def values(self, trial: Trial) -> list[float]:
        """Its objective metric, epoch by epoch."""
        return trial.observation.values.get(self.experiment.metric, [])

    def study(self) -> Any:
        """The trials as Optuna's study, for its figures."""
        return suggest.study(self.experiment, [(trial.assignments, self.value(trial)) for trial in self.ranked])

    def facts(self) -> dict[str, Any]:
        """All that a report says, as plain data."""
        experiment = self.experiment
        condition: dict[str, Any] = (self.status.get("conditions") or [{}])[-1]
        return {
            "experiment": experiment.name,
            "model": experiment.model,
            "objective": {"metric": experiment.metric, "maximize": experiment.maximize, "goal": experiment.goal},
            "algorithm": experiment.algorithm,
            "early_stopping": experiment.stopping or None,
            "state": condition.get("type", "Running"),
            "reason": condition.get("message", ""),
            "best": self._best(),
            "lineage": self._lineage(),
            "spent": self._spent(),
            "importance": self._importance(),
            "trials": [
                {
                    "trial": trial.name,
                    "state": trial.state,
                    experiment.metric: self.value(trial),
                    "epochs": len(self.values(trial)),
                    "seconds": _seconds(trial),
                    "parameters": trial.assignments,
                    "message": trial.message,
                }
                for trial in self.trials
            ],
            "classes": self.manifest.classes if self.manifest else [],
            "confusion": self.evaluation.confusion if self.evaluation else None,
        }

    def _best(self) -> dict[str, Any] | None:
        if not self.best:
            return None
        manifest, job = self.manifest, self._jobs.get(self.best.name)
        test = manifest.metrics.test if manifest else None
        return {
            "trial": self.best.name,
            self.experiment.metric: self.value(self.best),
            "test_accuracy": test.accuracy if test else None,
            "test_rows": test.rows if test else None,
            "epoch": manifest.epoch if manifest else None,
            "digest": manifest.digest if manifest else None,
            "parameters": self.best.assignments,
            "reproduce": self._command(job) if job else None,
        }

    def _command(self, job: Manifest) -> str:
        """What trains the best model again, from the project's folder: same arguments, seed and threads."""
        container = next(
            c for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == self.experiment.container["name"]
        )
        words = [str(word) for word in [*container["command"], *container.get("args", [])]]
        image = f"images/{self.experiment.image}"
        words = [f"{image}{word[4:]}" if word.startswith("/app/") else word for word in words]
        words = ["--export-path=reproduced" if word.startswith("--export-path=") else word for word in words]
        python = [".venv/bin/python" if word == "python3" else word for word in words[:1]]
        threads = self.manifest.versions.get("threads", "1") if self.manifest else "1"
        return f"NAS_DATA=.nas/data NAS_CPUS={threads} {shlex.join([*python, *words[1:]])}"

    def _lineage(self) -> list[dict[str, Any]]:
        """The best model, if it was promoted, or else the current one; then each one's parent."""
        versions = {entry.manifest.digest: entry.manifest for entry in self.store.entries() if entry.version}
        reasons = {event.digest: f"{event.event}: {event.reason}" for event in self.store.history() if event.digest}
        digest = self.manifest.digest if self.manifest and self.manifest.digest in versions else self.store.current()
        found: list[dict[str, Any]] = []
        while digest in versions and digest not in [row["digest"] for row in found]:
            manifest = versions[digest]
            test = manifest.metrics.test
            found.append(
                {
                    "digest": digest,
                    "created": manifest.created[:19],
                    "accuracy": manifest.metrics.validation.accuracy,
                    "test_accuracy": test.accuracy if test else None,
                    "trial": manifest.trial,
                    "why": reasons.get(digest, ""),
                }
            )
            digest = manifest.parent
        return found

    def _spent(self) -> dict[str, Any]:
        """Epochs and seconds spent, and an estimate of what stopping saved.

        Between trials: a stopped trial would have taken as many epochs as those that weren't, on average. Within
        trials: one that ran out of patience would have gone on to its last epoch. Seconds: at each trial's own pace.
        """
        whole = [len(self.values(trial)) for trial in self.trials if trial.state == "Succeeded"]
        limit = int(self.experiment.argument("epochs") or 0)
        between = within = seconds = saved = 0.0
        for trial in self.trials:
            epochs, took = len(self.values(trial)), _seconds(trial) or 0.0
            spare = 0.0
            if trial.state == "EarlyStopped" and whole:
                spare = max(0.0, sum(whole) / len(whole) - epochs)
                between += spare
            elif trial.state == "Succeeded":
                spare = max(0.0, limit - epochs)
                within += spare
            seconds += took
            saved += spare * took / epochs if epochs else 0.0
        epochs = sum(len(self.values(trial)) for trial in self.trials)
        return {
            "epochs": epochs,
            "epochs_limit": limit * len(self.trials) or None,
            "epochs_saved_between_trials": round(between),
            "epochs_saved_within_trials": round(within),
            "trial_seconds": round(seconds, 1),
            "trial_seconds_saved": round(saved, 1),
        }

    def _importance(self) -> dict[str, float]:
        """Each parameter's share in how the objective varies (fANOVA); empty when the trials are too few to say."""
        import optuna

        with contextlib.suppress(ValueError, RuntimeError):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            shares = optuna.importance.get_param_importances(self.study(), evaluator=evaluator)
            return {name: round(share, 4) for name, share in shares.items()}
        return {}

    def _read(self, name: str, kind: type[Any]) -> Any:
        """A file the best trial left in the store; None when it is gone, as after `gc`."""
        if not self.best:
            return None
        folder = self.store.folder / "trials" / self.experiment.name / self.best.name
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((folder / name).read_bytes(), type=kind)
        return None


def _seconds(trial: Trial) -> float | None:
    return round(trial.ended - trial.started, 1) if trial.ended and trial.started else None


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
