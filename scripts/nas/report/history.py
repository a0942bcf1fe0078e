"""What is known of a search when it is looked back at, from its objects and from the store."""

import contextlib
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from modelkit import artifact
from modelkit.store import Store, StoreError
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from nas import artifacts, suggest
from nas.cluster import Cluster
from nas.engine import Places, recorded, recorded_trials
from nas.errors import NasError
from nas.experiment import Experiment, Manifest
from nas.follow import EXPERIMENT
from nas.progress import Progress, Trial, read_trials
from nas.view import meter

ESTIMATORS = {"cv": "by cross-validation", "holdout": "on the validation split"}


@dataclass(frozen=True)
class Source:
    """Where a search is told: its Experiment, its Trials, what each of them printed, and the store it fed.

    The objects have Katib's shape, so that those of this machine and of a cluster read alike.
    """

    experiment: Manifest
    trials: list[Manifest]
    printed: dict[str, str]  # by the trial's name; none when nothing is known
    store: Store


def here(places: Places, model: str, name: str | None) -> Source:
    """The search `name` on this machine, or the latest one of `model`. Raises NasError when there is none."""
    for folder, manifest in recorded(places):
        experiment = Experiment(manifest)
        if experiment.name == name if name else experiment.model == model:
            return Source(manifest, *recorded_trials(folder), Store(places.store, experiment.model))
    wanted = f"experiment {name}" if name else f"search of model {model!r}"
    there = ", ".join(folder.name for folder, _ in recorded(places)) or "none"
    raise NasError(f"no {wanted} in {places.home / 'runs'} (there: {there}): run one, or name another")


def there(cluster: Cluster, places: Places, release: str, name: str | None) -> Source:
    """The search `name` of a release on a cluster, or its latest; the model's files are copied from the claim.

    Raises NasError when there is none.
    """
    found = cluster.objects("Experiment", f"app.kubernetes.io/instance={release}")
    found = [manifest for manifest in found if name in (None, manifest["metadata"]["name"])]
    if not found:
        raise NasError(f"no search {name or ''} of release {release} in namespace {cluster.namespace}")
    manifest = max(found, key=lambda m: str(m["metadata"]["creationTimestamp"]))
    experiment, folder = Experiment(manifest, local=False), places.home / "report" / release
    trials = cluster.objects("Trial", f"{EXPERIMENT}={experiment.name}")
    with artifacts.opened(cluster, places.root, release) as claim, meter("copying models") as told:
        claim.copy(experiment.model, folder / experiment.model, told)
    printed = {
        path.parent.name: "".join(
            "epoch={epoch} loss={loss!r} accuracy={accuracy!r}\n".format(**msgspec.json.decode(line))
            for line in path.read_bytes().splitlines()
        )
        for path in folder.glob(f"{experiment.model}/trials/{experiment.name}/*/metrics.jsonl")
    }
    return Source(manifest, trials, printed, Store(folder, experiment.model))


class History(Progress):
    """A search read from its source: trials in the order they started, with every value they printed."""

    def __init__(self, source: Source) -> None:
        super().__init__(Experiment(source.experiment, local=False))
        self.store = source.store
        self.status: dict[str, Any] = source.experiment.get("status") or {}
        self.trials = read_trials(self.experiment, source.trials, source.printed)
        if not self.trials:
            raise NasError(f"experiment {self.experiment.name} has no trial yet: wait for its first")
        self._jobs = {m["metadata"]["name"]: m["spec"].get("runSpec") for m in source.trials}
        self.evaluation = self._read(artifact.EVALUATION_FILE, artifact.Evaluation)
        self.manifest = self._read(artifact.MANIFEST_FILE, artifact.Manifest)

    def values(self, trial: Trial) -> list[float]:
        """Its objective metric, epoch by epoch, as far as that is known."""
        return [] if trial.reports == 0 else trial.observation.get(self.experiment.metric, [])

    @cached_property
    def study(self) -> Any:
        """The trials as Optuna's study, for its figures."""
        return suggest.study(self.experiment, [(t.assignments, self.value(t)) for t in self.finished])

    @cached_property
    def importance(self) -> dict[str, float]:
        """Each parameter's share in how the objective varies (fANOVA); empty when the trials are too few to say."""
        with contextlib.suppress(ValueError, RuntimeError):
            shares = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))
            return {name: round(share, 4) for name, share in shares.items()}
        return {}

    def facts(self) -> dict[str, Any]:
        """All that a report says, as plain data."""
        experiment, scores = self.experiment, self.manifest.metrics.validation if self.manifest else None
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
            "estimator": ESTIMATORS.get(scores.estimator if scores else "", "in validation"),
            "lineage": self._lineage(),
            "spent": self._spent(),
            "importance": self.importance,
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
            "reproduce": self._command(job) if job and self.experiment.container else None,
        }

    def _command(self, job: Manifest) -> str:
        """What trains the best model again, from the project's folder: same arguments, seed and threads."""
        containers = job["spec"]["template"]["spec"]["containers"]
        container = next(c for c in containers if c["name"] == self.experiment.container["name"])
        words = [str(word) for word in [*container["command"], *container.get("args", [])]]
        image = f"images/{self.experiment.image}"
        words = [f"{image}{word[4:]}" if word.startswith("/app/") else word for word in words]
        words = ["--export-path=reproduced" if word.startswith("--export-path=") else word for word in words]
        words[0] = ".venv/bin/python" if words[0] == "python3" else words[0]
        threads = self.manifest.versions.get("threads", "1") if self.manifest else "1"
        return f"NAS_DATA=.nas/data NAS_CPUS={threads} {shlex.join(words)}"

    def _lineage(self) -> list[dict[str, Any]]:
        """This search's best model and what was current when it was offered, back to the first ancestor."""
        if not self.manifest:
            return []
        events = [event for event in self.store.history() if event.digest]
        reasons = {event.digest: f"{event.event}: {event.reason}" for event in events}
        line = self.store.lineage(self.manifest.digest)
        if len(line) == 1:  # not promoted: it has no parent, but was compared with one
            offered = f"{self.experiment.name}/{self.manifest.trial}"
            compared = next((event.previous for event in events if event.trial == offered), None)
            with contextlib.suppress(StoreError):
                line += self.store.lineage(compared) if compared else []
        found = []
        for m in [entry.manifest for entry in line if not isinstance(entry, str)]:
            test = m.metrics.test.accuracy if m.metrics.test else None
            row = {"digest": m.digest, "created": m.created[:19], "accuracy": m.metrics.validation.accuracy}
            found.append(row | {"test_accuracy": test, "trial": m.trial, "why": reasons.get(m.digest, "")})
        return found

    def _spent(self) -> dict[str, Any]:
        """Epochs and seconds spent, and an estimate of what stopping saved.

        Between trials: a stopped trial would have taken as many epochs as those that weren't, on average. Within
        trials: one that ran out of patience would have gone on to its last epoch. Seconds: at each trial's own pace.
        """
        spent = [(trial.state, len(self.values(trial)), _seconds(trial) or 0.0) for trial in self.trials]
        whole = [epochs for state, epochs, _ in spent if state == "Succeeded"]
        limit = self.experiment.epochs
        expected = {"EarlyStopped": sum(whole) / max(1, len(whole)), "Succeeded": limit}
        saved = [(state, max(0.0, expected.get(state, 0) - epochs)) for state, epochs, _ in spent]
        paces = [seconds / epochs if epochs else 0.0 for _, epochs, seconds in spent]
        return {
            "epochs": sum(epochs for _, epochs, _ in spent),
            "epochs_limit": limit * len(self.trials) or None,
            "epochs_saved_between_trials": round(sum(epochs for state, epochs in saved if state == "EarlyStopped")),
            "epochs_saved_within_trials": round(sum(epochs for state, epochs in saved if state == "Succeeded")),
            "trial_seconds": round(sum(seconds for *_, seconds in spent), 1),
            "trial_seconds_saved": round(sum(e * pace for (_, e), pace in zip(saved, paces, strict=True)), 1),
        }

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
