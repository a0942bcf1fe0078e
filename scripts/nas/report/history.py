"""What is known of a search when it is looked back at, from its objects and from the store."""

import contextlib
import re
import shlex
from functools import cached_property
from typing import Any

import msgspec
from modelkit import artifact
from modelkit.store import MADE_CURRENT, Store, StoreError, told
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from nas import artifacts, suggest
from nas.cluster import Cluster
from nas.engine import Places, recorded, recorded_trials
from nas.errors import NasError
from nas.experiment import Experiment, Manifest
from nas.follow import EXPERIMENT
from nas.progress import Progress, Trial, read_trials
from nas.view import meter


class History(Progress):
    """A search from its Experiment, its Trials, what each printed (by name; none if not known), and the store it fed.

    The objects have Katib's shape: those of this machine and of a cluster read alike. Trials are in the order they
    started, with every value they printed.
    """

    def __init__(self, experiment: Manifest, trials: list[Manifest], printed: dict[str, str], store: Store) -> None:
        super().__init__(Experiment(experiment, local=False))
        self.store = store
        state: Manifest = (experiment.get("status", {}).get("conditions") or [{}])[-1]
        self.state, self.reason = state.get("type", "Running"), state.get("message", "")
        self.trials = read_trials(self.experiment, trials, printed)
        if not self.trials:
            raise NasError(f"experiment {self.experiment.name} has no trial yet: wait for its first")
        self.promoted = {str(e.trial).rpartition("/")[2] for e in store.history() if e.event == "promoted"}
        self._jobs = {m["metadata"]["name"]: m["spec"].get("runSpec") for m in trials}
        self.manifest: artifact.Manifest | None = None
        self.evaluation = artifact.Evaluation([], [])
        kept = self.store.folder / "trials" / self.experiment.name / (self.best.name if self.best else "")
        with contextlib.suppress(OSError, msgspec.DecodeError):  # gone, as after `gc`, or not a trial's by modelkit
            self.manifest = msgspec.json.decode((kept / artifact.MANIFEST_FILE).read_bytes(), type=artifact.Manifest)
            evaluation = (kept / artifact.EVALUATION_FILE).read_bytes()
            self.evaluation = msgspec.json.decode(evaluation, type=artifact.Evaluation)

    def values(self, trial: Trial) -> list[float]:
        """Its objective metric, epoch by epoch, as far as that is known."""
        return [] if trial.reports == 0 else trial.observation.get(self.experiment.metric, [])

    @cached_property
    def study(self) -> Any:
        """The trials as Optuna's study, for its figures."""
        return suggest.study(self.experiment, [(t.assignments, self.value(t)) for t in self.finished])

    def facts(self) -> dict[str, Any]:
        """All that a report says, as data for JSON; `experiment` is the object as it was read."""
        return {
            "experiment": self.experiment.manifest,
            "trials": self.trials,
            "best": self.best.name if self.best else None,
            "reproduce": self.reproduce(),
            "model": told(self.manifest) if self.manifest else None,
            "lineage": [{**told(manifest), "why": why} for manifest, why in self.lineage()],
            "evaluation": self.evaluation,
            "importance": self.importance(),
            "spent": self.spent(),
        }

    def importance(self) -> dict[str, float]:
        """Each parameter's share in how the objective varies (fANOVA); empty when the trials are too few to say."""
        with contextlib.suppress(ValueError, RuntimeError):
            shares = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))
            return {name: round(float(share), 4) for name, share in shares.items()}
        return {}

    def reproduce(self) -> str | None:
        """What trains the best model again, from the project's folder: same arguments, seed and threads."""
        job = self._jobs.get(self.best.name) if self.best else None
        if not job or not self.experiment.container:
            return None
        containers = job["spec"]["template"]["spec"]["containers"]
        container = next(c for c in containers if c["name"] == self.experiment.container["name"])
        line = shlex.join(map(str, [*container["command"], *container.get("args", [])]))
        line = re.sub("^python3 ", ".venv/bin/python ", line).replace(" /app/", f" images/{self.experiment.image}/")
        line = re.sub(r"--export-path=\S+", "--export-path=reproduced", line)
        threads = self.manifest.versions.get("threads", "1") if self.manifest else "1"
        return f"NAS_DATA=.nas/data NAS_CPUS={threads} {line}"

    def lineage(self) -> list[tuple[artifact.Manifest, str]]:
        """This search's best model and what was current when it was offered, back to the first ancestor.

        Each with why it became current, or else why it didn't.
        """
        if not self.manifest:
            return []
        events = self.store.history()
        why: dict[str, str] = {}
        for event in sorted(events, key=lambda event: event.event not in MADE_CURRENT):
            why.setdefault(event.digest, f"{event.event}: {event.reason}")
        line = self.store.lineage(self.manifest.digest)
        if len(line) == 1:  # not promoted: it has no parent, but was compared with one
            compared = next((event.previous for event in events if event.digest == self.manifest.digest), None)
            with contextlib.suppress(StoreError):
                line += self.store.lineage(compared) if compared else []
        manifests = [entry.manifest for entry in line if not isinstance(entry, str)]
        return [(manifest, why.get(manifest.digest, "")) for manifest in manifests]

    def spent(self) -> dict[str, Any]:
        """Epochs and seconds spent, and an estimate of what stopping saved.

        Between trials: a stopped trial would have taken as many epochs as those that weren't, on average. Within
        trials: one that ran out of patience would have gone on to its last epoch. Seconds: at all trials' mean pace.
        """
        took = [(trial.state, len(self.values(trial))) for trial in self.trials]
        epochs, seconds = sum(count for _, count in took), sum(trial_seconds(trial) or 0.0 for trial in self.trials)
        whole = [count for state, count in took if state == "Succeeded"]
        mean, limit = sum(whole) / max(1, len(whole)), self.experiment.epochs
        between = sum(max(0.0, mean - count) for state, count in took if state == "EarlyStopped")
        within = sum(max(0, limit - count) for count in whole)
        return {
            "epochs": epochs,
            "epochs_limit": limit * len(self.trials) or None,
            "epochs_saved_between_trials": round(between),
            "epochs_saved_within_trials": within,
            "trial_seconds": round(seconds, 1),
            "trial_seconds_saved": round((between + within) * seconds / max(1, epochs), 1),
        }


def here(places: Places, model: str, name: str | None) -> History:
    """The search `name` on this machine, or the latest one of `model`. Raises NasError when there is none."""
    for folder, manifest in recorded(places):
        experiment = Experiment(manifest)
        if experiment.name == name if name else experiment.model == model:
            return History(manifest, *recorded_trials(folder), Store(places.store, experiment.model))
    wanted = f"experiment {name}" if name else f"search of model {model!r}"
    there = ", ".join(folder.name for folder, _ in recorded(places)) or "none"
    raise NasError(f"no {wanted} in {places.home / 'runs'} (there: {there}): run one, or name another")


def there(cluster: Cluster, places: Places, release: str, name: str | None) -> History:
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
    with artifacts.opened(cluster, places.root, release) as claim, meter("copying models") as copied:
        claim.copy(experiment.model, folder / experiment.model, copied)
    printed = {
        path.parent.name: "".join(
            "epoch={epoch} loss={loss!r} accuracy={accuracy!r}\n".format(**msgspec.json.decode(line))
            for line in path.read_bytes().splitlines()
        )
        for path in folder.glob(f"{experiment.model}/trials/{experiment.name}/*/metrics.jsonl")
    }
    return History(manifest, trials, printed, Store(folder, experiment.model))


def trial_seconds(trial: Trial) -> float | None:
    """How long it took, None while it runs."""
    return round(trial.ended - trial.started, 1) if trial.ended and trial.started else None
