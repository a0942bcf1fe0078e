"""A search on a cluster as it goes: its Experiment and Trials, and what their pods print, as one Progress."""

import contextlib
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, Literal

from nas.cluster import Cluster, ClusterError, trouble
from nas.experiment import Experiment, Manifest, Observation
from nas.progress import Progress, Trial, condition, read_trial, seconds
from nas.view import View

COLLECTOR = "metrics-logger-and-collector"  # Katib's container that shows what a trial prints
KLOG = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ [\w.-]+:\d+\] ")  # what it puts before each line
EXPERIMENT, TRIAL = "katib.kubeflow.org/experiment", "katib.kubeflow.org/trial"  # labels


class Follower(Progress):
    """An Experiment of a cluster. `follow` keeps it up to date until the search is over."""

    def __init__(self, cluster: Cluster, manifest: Manifest) -> None:
        super().__init__(Experiment(manifest, local=False))
        self.cluster = cluster
        self._selector = f"{EXPERIMENT}={self.experiment.name}"
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._stop = threading.Event()
        self._logs: dict[str, subprocess.Popen[bytes]] = {}  # by the pod's uid
        self._pods: dict[str, str] = {}  # the pod's uid by the trial's name
        self._experiment(manifest)
        for found in sorted(cluster.objects("Trial", self._selector), key=lambda t: t["metadata"]["creationTimestamp"]):
            self.trials.append(read_trial(found))
            self._observed(self.trials[-1], found)

    @property
    def over(self) -> bool:
        """Whether no trial will come or go on; Katib calls an Experiment done while its last trials still run."""
        return self.state != "Running" and all(trial.state != "Running" for trial in self.trials)

    def follow(self, view: View) -> None:
        """Tell `view` what happens until the search is over. Raises ClusterError, KeyboardInterrupt (SIGTERM too)."""
        kinds = {"Experiment": "", "Trial": self._selector, "Pod": f"{self._selector},{TRIAL}"}
        with sigterm_as_interrupt():
            try:
                for kind, selector in kinds.items():
                    self.cluster.objects(kind, selector)  # what can't be read is told before anything is shown
                    threading.Thread(target=self._pump, args=(kind, selector), daemon=True).start()
                while not self.over:
                    kind, event = self._events.get()
                    getattr(self, f"_on_{kind.lower()}")(event, view)
            finally:
                self._stop.set()
                for process in self._logs.values():
                    process.kill()
                    process.wait()

    def _pump(self, kind: str, selector: str) -> None:
        try:
            for found in self.cluster.watch(kind, selector, self._stop):
                self._events.put((kind, found))
        except ClusterError as error:
            self._events.put(("Error", error))

    def _on_error(self, error: ClusterError, _: View) -> None:
        raise error

    def _on_experiment(self, manifest: Manifest, _: View) -> None:
        if manifest["metadata"]["name"] != self.experiment.name:
            return
        if manifest.get("deleted"):
            raise ClusterError(f"the experiment {self.experiment.name} was removed; the models on the claim stay")
        self._experiment(manifest)

    def _experiment(self, manifest: Manifest) -> None:
        status = manifest.get("status", {})
        self.started = seconds(status.get("startTime") or manifest["metadata"]["creationTimestamp"])
        if end := condition(manifest, "Succeeded", "Failed"):
            state: Literal["Succeeded", "Failed"] = end["type"]
            self.state, self.reason = state, end.get("message") or end.get("reason", "")
            self.ended = seconds(status.get("completionTime") or end["lastTransitionTime"])

    def _on_trial(self, manifest: Manifest, view: View) -> None:
        seen, known = read_trial(manifest), self._find(manifest["metadata"]["name"])
        if manifest.get("deleted"):  # such as the newest, when parallelTrialCount was lowered
            self.trials = [trial for trial in self.trials if trial is not known]
            return
        if known is None:
            known = seen
            self.trials.append(known)
            view.started(known)
        was, known.started = known.ended, seen.started or known.started
        known.state, known.ended = seen.state, seen.ended
        if seen.ended:
            known.message = seen.message
            self._observed(known, manifest)
        if was is None and seen.ended:
            view.ended(known)

    def _observed(self, trial: Trial, manifest: Manifest) -> None:
        """Take the values from the Trial where its output doesn't say the same, such as when its pod is gone."""
        seen = Observation()
        for metric in manifest.get("status", {}).get("observation", {}).get("metrics", []):
            with contextlib.suppress(ValueError):  # Katib says "unavailable"
                seen.values[metric["name"]] = [float(metric[key]) for key in ("min", "max", "latest")]
        value = self.experiment.value(seen)
        if value is not None and value != self.value(trial):
            trial.observation, trial.reports = seen, 0

    def _on_pod(self, pod: Manifest, view: View) -> None:
        trial = self._find(pod["metadata"]["labels"][TRIAL])
        if trial is None or trial.ended or pod.get("deleted"):
            return
        why = trouble(pod)
        if why and why != trial.message:
            view.note(f"trial {trial.name} waits: {why}")
        trial.message, uid = why, pod["metadata"]["uid"]
        for container in pod.get("status", {}).get("containerStatuses", []):
            running = not container["state"].get("waiting")
            if container["name"] == COLLECTOR and running and uid not in self._logs:
                if self._pods.get(trial.name, uid) != uid:  # only the new pod's output counts
                    trial.observation = Observation()
                    view.note(f"trial {trial.name} starts again in a new pod")
                self._pods[trial.name] = uid
                self._logs[uid] = self.cluster.start("logs", "--follow", pod["metadata"]["name"], "-c", COLLECTOR)
                threading.Thread(target=self._read, args=(trial, uid, self._logs[uid]), daemon=True).start()

    def _read(self, trial: Trial, uid: str, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout
        for line in process.stdout:
            self._events.put(("Line", (trial, uid, KLOG.sub("", line.decode(errors="replace").rstrip("\n")))))

    def _on_line(self, event: tuple[Trial, str, str], view: View) -> None:
        trial, uid, line = event
        if trial.ended or self._pods[trial.name] != uid:
            return
        if self.experiment.metric in self.experiment.observe(line, trial.observation):
            view.reported(trial)

    def _find(self, name: str) -> Trial | None:
        return next((trial for trial in self.trials if trial.name == name), None)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """KeyboardInterrupt for SIGTERM too, so that what was started is ended."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
