"""A Katib Experiment, as the chart renders it, and the Trials made from it."""

import copy
import re
from dataclasses import dataclass
from typing import Any

from nas.errors import NasError

API_VERSION = "kubeflow.org/v1beta1"
Manifest = dict[str, Any]
Observation = dict[str, list[float]]  # what a trial printed: every value in order, by the metric's name


@dataclass(frozen=True)
class Rule:
    """Between-trial stopping: stop when the best so far at report `start_step` is on the wrong side of `value`."""

    value: float
    start_step: int


class Experiment:
    """The search an Experiment object describes.

    Raises NasError for what isn't one; with `local`, also for what can't run on this machine, where Katib can.
    """

    def __init__(self, manifest: Manifest, local: bool = True) -> None:
        self.manifest = manifest
        self.container: Manifest = {}
        try:
            self._read(manifest["spec"])
            if local and (self.collector != "StdOut" or self.stopping not in ("", "medianstop")):
                raise NasError("a local run stops early by medianstop alone, and reads metrics by the collector StdOut")
            if local:
                manifest["spec"]["parameters"], manifest["spec"]["maxTrialCount"]  # they must be there
            template = manifest["spec"]["trialTemplate"]
            if local or template.get("trialSpec", {}).get("kind") == "Job":
                self._read_job(template)
            self.name: str = manifest["metadata"]["name"]
        except (KeyError, TypeError, IndexError, ValueError, re.error) as error:
            raise NasError(f"the Experiment lacks or misstates {error}: is the chart changed?") from error

    def _read(self, spec: Manifest) -> None:
        objective = spec["objective"]
        annotations = self.manifest["metadata"].get("annotations", {})
        self.model: str = annotations.get("nas/model", "")
        self.only_when_data_changes = annotations.get("nas/only-when-data-changes") == "true"
        self.metric: str = objective["objectiveMetricName"]
        self.maximize = objective["type"] == "maximize"
        self.goal = float(objective["goal"]) if "goal" in objective else None
        self.metrics = [self.metric, *objective.get("additionalMetricNames", [])]
        self.strategies = {s["name"]: s["value"] for s in objective.get("metricStrategies", [])}
        self.algorithm: str = spec["algorithm"]["algorithmName"]
        self.settings = {s["name"]: s["value"] for s in spec["algorithm"].get("algorithmSettings", [])}
        # Without maxTrialCount (0 here) a search goes on until its goal.
        self.max_trials, self.parallel = int(spec.get("maxTrialCount", 0)), int(spec["parallelTrialCount"])
        self.max_failed = int(spec.get("maxFailedTrialCount", self.max_trials))
        stopping = spec.get("earlyStopping", {})
        self.stopping: str = stopping.get("algorithmName", "")
        rules = {s["name"]: int(s["value"]) for s in stopping.get("algorithmSettings", [])}
        self.min_trials, self.start_step = rules.get("min_trials_required", 3), rules.get("start_step", 4)
        collector = spec.get("metricsCollectorSpec", {})
        self.collector: str = collector.get("collector", {}).get("kind", "StdOut")
        formats = collector.get("source", {}).get("filter", {}).get("metricsFormat")
        self.formats = [re.compile(f) for f in formats or [r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)"]]
        self.space: dict[str, Manifest] = {  # by the parameter's name
            p["name"]: {"type": p["parameterType"], **p["feasibleSpace"]} for p in spec.get("parameters", [])
        }

    def _read_job(self, template: Manifest) -> None:
        self._references = {p["name"]: p["reference"] for p in template["trialParameters"]}
        self._job: Manifest = template["trialSpec"]
        pod = self._job["spec"]["template"]["spec"]
        primary = template.get("primaryContainerName", "")
        self.container = next(c for c in pod["containers"] if c["name"] == primary or not primary)
        claims = [v["name"] for v in pod.get("volumes", []) if "persistentVolumeClaim" in v]
        self.claim_paths = [m["mountPath"] for m in self.container.get("volumeMounts", []) if m["name"] in claims]
        self.deadline = self._job["spec"].get("activeDeadlineSeconds")
        self.backoff_limit = int(self._job["spec"].get("backoffLimit", 6))

    @property
    def image(self) -> str:
        """The image's name without registry, tag and digest: the folder under images/."""
        return re.split("[:@]", str(self.container["image"]).rsplit("/", 1)[-1])[0]

    def argument(self, name: str) -> str | None:
        """A fixed argument of the trainer, None when it isn't given."""
        for word in map(str, self.container.get("args", [])):
            given, equals, value = word.partition("=")
            if equals and given.replace("_", "-") == f"--{name}":
                return value
        return None

    @property
    def epochs(self) -> int:
        """The epochs a trial could take, 0 when the command line doesn't say."""
        epochs = self.argument("epochs") or ""
        return int(epochs) if epochs.isdigit() else 0

    def job(self, trial: str, assignments: dict[str, str]) -> Manifest:
        """The trialSpec with every `${trialParameters.*}` of a trial put in, as Katib's controller does."""
        known = {**assignments, "${trialSpec.Name}": trial}
        values = {name: known.get(reference, reference) for name, reference in self._references.items()}
        job: Manifest = _substitute(copy.deepcopy(self._job), values)
        job["metadata"] = {**job.get("metadata", {}), "name": trial}
        return job

    def observe(self, line: str, observation: Observation) -> list[str]:
        """Add what a printed line says of the metrics; the names of those it had. Other lines say nothing."""
        found = []
        for pattern in self.formats:
            for match in pattern.finditer(line):
                name = match[1].strip()
                if name not in self.metrics:
                    continue
                try:
                    value = float(match[2])
                except ValueError:
                    continue  # such as nan; Katib would store an empty value and call the trial a success
                observation.setdefault(name, []).append(value)
                found.append(name)
        return found

    def value(self, observation: Observation) -> float | None:
        """A trial's objective: the max, min or latest of its values, as the metric's strategy says."""
        values = observation.get(self.metric)
        if not values:
            return None
        strategy = self.strategies.get(self.metric, "max" if self.maximize else "min")
        return {"max": max(values), "min": min(values), "latest": values[-1]}[strategy]

    def better(self, one: float, other: float | None) -> bool:
        """Whether `one` is a better objective value than `other`."""
        return other is None or (one > other if self.maximize else one < other)

    def reached(self, value: float | None) -> bool:
        """Whether the goal is met."""
        return value is not None and self.goal is not None and not self.better(self.goal, value)

    def rule(self, succeeded: list[Observation]) -> Rule | None:
        """Katib's medianstop for a trial that starts now, after those that succeeded.

        The threshold is the mean over these trials of the mean of their first `start_step` objective values.
        """
        histories = [o[self.metric][: self.start_step] for o in succeeded if o.get(self.metric)]
        if not self.stopping or not histories or len(histories) < self.min_trials:
            return None
        return Rule(sum(sum(h) / len(h) for h in histories) / len(histories), self.start_step)

    def stops(self, rule: Rule | None, observation: Observation) -> bool:
        """Whether `rule` ends a trial at this very report."""
        values = observation.get(self.metric, [])
        if rule is None or len(values) != rule.start_step:
            return False
        return self.better(rule.value, max(values) if self.maximize else min(values))


def _substitute(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, values) for value in node]
    if isinstance(node, str):
        return re.sub(r"\$\{trialParameters\.([^}]+)\}", lambda match: values.get(match[1], match[0]), node)
    return node
