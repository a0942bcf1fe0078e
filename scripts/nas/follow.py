"""A search on a cluster as it goes: its Experiment and Trials, and what their pods print, looked at again and again."""

import contextlib
import re
import time

from nas.cluster import LIMIT, NAMES, Cluster, ClusterError, trouble
from nas.errors import NasError
from nas.experiment import Experiment, Manifest
from nas.progress import Progress, condition, read_trials, seconds
from nas.view import View

COLLECTOR = "metrics-logger-and-collector"  # Katib's container that shows what a trial prints
KLOG = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ [\w.-]+:\d+\] ", re.MULTILINE)  # what it puts before each line
EXPERIMENT, TRIAL = "katib.kubeflow.org/experiment", "katib.kubeflow.org/trial"  # labels
INTERVAL = 2.0  # seconds between two looks


class Follower(Progress):
    """An Experiment of a cluster. `follow` keeps it up to date until the search is over."""

    def __init__(self, cluster: Cluster, manifest: Manifest) -> None:
        super().__init__(Experiment(manifest, local=False))
        self.cluster = cluster
        self._printed: dict[str, str] = {}  # by the trial's name; kept when its pod is gone
        self._look()

    @property
    def over(self) -> bool:
        """Whether no trial will come or go on; Katib calls an Experiment done while its last trials still run."""
        return self.state != "Running" and all(trial.ended for trial in self.trials)

    def follow(self, view: View) -> None:
        """Tell `view` what happens until the search is over. Raises NasError."""
        while not self.over:
            time.sleep(INTERVAL)
            with contextlib.suppress(ClusterError):  # a lost connection: the next look may find it again
                self._look()
            for trial in self.trials:
                view.changed(trial)

    def _look(self) -> None:
        """Bring all up to date. Raises NasError when the Experiment is gone, ClusterError."""
        manifest = self.cluster.get("Experiment", self.experiment.name)
        if manifest is None:
            raise NasError(f"the experiment {self.experiment.name} was removed; the models on the claim stay")
        found = self.cluster.objects(f"{NAMES['Trial']},pods", f"{EXPERIMENT}={self.experiment.name}")
        found.sort(key=lambda each: str(each["metadata"]["creationTimestamp"]))
        labelled = [(pod["metadata"]["labels"].get(TRIAL), pod) for pod in found if pod["kind"] == "Pod"]
        ended = [trial.name for trial in self.trials if trial.ended]
        # Of a trial that was started again, only the newest pod's output counts.
        pods = {trial: pod for trial, pod in labelled if trial and trial not in ended}
        for trial, pod in pods.items():
            with contextlib.suppress(ClusterError):  # it doesn't run yet, or is gone
                said = self.cluster.call("logs", pod["metadata"]["name"], "-c", COLLECTOR, LIMIT)
                self._printed[trial] = KLOG.sub("", said)
        trials = [each for each in found if each["kind"] == "Trial"]
        self.trials = read_trials(self.experiment, trials, self._printed)
        for trial in self.trials:
            if trial.name in pods and not trial.ended:
                trial.message = trouble(pods[trial.name])
        status = manifest.get("status", {})
        self.started = seconds(status.get("startTime") or manifest["metadata"]["creationTimestamp"])
        if end := condition(manifest, "Succeeded", "Failed"):
            self.state, self.reason = end["type"], end.get("message") or end.get("reason", "")
            self.ended = seconds(status.get("completionTime") or end["lastTransitionTime"])
