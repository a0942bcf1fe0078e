"""A stand-in for Katib's controller and webhooks, for clusters of tests that can't have the real one.

    katib_standin.py KUBECONFIG     run it until SIGTERM; it runs on the machine, not in the cluster

It follows Experiments with the local engine's search logic and makes the objects that Katib makes, by the same names
and labels, with the same traps: what the webhooks refuse and say, the rewritten command, the collector beside it, how
conditions of stopped trials look, when an Experiment fails or goes on. Nothing of the product depends on it.

What Katib does and this doesn't: suggestion pods (and their 10 s), a database, the UI, finalizers, other collectors
than StdOut, other trials than Jobs, the wait of an Experiment whose early-stopped Job was deleted under it.
"""

import base64
import contextlib
import http.server
import json
import random
import re
import socket
import ssl
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from nas.experiment import Experiment, Observation
from nas.suggest import Suggester

GROUP, VERSION = "kubeflow.org", "v1beta1"
API_VERSION = f"{GROUP}/{VERSION}"
LABEL = "katib.kubeflow.org/metrics-collector-injection"
OF_EXPERIMENT, OF_TRIAL = "katib.kubeflow.org/experiment", "katib.kubeflow.org/trial"
COLLECTOR = "metrics-logger-and-collector"
COLLECTOR_PROGRAM = Path(__file__).with_name("katib_collector.py").read_text()
METRICS_FILE = "/var/log/katib/metrics.log"
KLOG_PREFIX = re.compile(r"^I\d{4} [\d:.]+ +\d+ main\.go:\d+\] ", re.MULTILINE)
STOPPED = "Training container is early stopped"
EDITABLE = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
EMPTY_IS_FINE = ("affinity", "resources", "securityContext", "emptyDir", "metadata")
NO_POINTERS = ("hostNetwork", "hostPID", "hostIPC", "readOnly", "stdin", "stdinOnce", "tty")  # false is left out too
INTERVAL = 0.5  # seconds between two looks at the cluster
Object = dict[str, Any]


class Search:
    """One Experiment: what Katib's controllers do about it each time they look."""

    def __init__(self, experiment: Object) -> None:
        self._suggester: Suggester | None = None
        self._observations: dict[str, Observation] = {}
        self._exhausted = False
        self.namespace: str = experiment["metadata"]["namespace"]
        self.objects = client.CustomObjectsApi()

    def look(self, manifest: Object) -> None:
        self.manifest, self.experiment = manifest, Experiment(manifest)
        self.status: Object = manifest.setdefault("status", {})
        if completed(self.status) and not self._active and not self._resumes:
            return
        before = json.dumps(self.status)
        if "startTime" not in self.status:
            self.status["startTime"] = now()
            condition(self.status, "Created", "ExperimentCreated", "Experiment is created")
        self.trials = self._list("trials")
        for trial in self.trials:
            self._look_at_trial(trial)
        self._summarize()
        if not completed(self.status):
            self._fill()
        if json.dumps(self.status) != before:
            self._save("experiments", manifest)

    @property
    def _active(self) -> int:
        """Trials of the last count that hadn't ended."""
        count: int = self.status.get("trialsRunning", 0) + self.status.get("trialsPending", 0)
        return count

    @property
    def _resumes(self) -> bool:
        """Whether a search that ended by its number of trials has been allowed more."""
        more = self.experiment.max_trials > self.status.get("trials", 0)
        return more and restartable(self.manifest)

    # The trials

    def _look_at_trial(self, trial: Object) -> None:
        name, status = trial["metadata"]["name"], trial.setdefault("status", {})
        before = json.dumps(status)
        batch = client.BatchV1Api()
        if "startTime" not in status:
            status["startTime"] = now()
            condition(status, "Created", "TrialCreated", "Trial is created")
        try:
            job = batch.read_namespaced_job(name, self.namespace)
            if done(status) and not trial["spec"].get("retainRun"):
                batch.delete_namespaced_job(name, self.namespace, propagation_policy="Foreground")
        except ApiException as error:
            if error.status != 404:
                raise
            job = None
            if not done(status):
                run = trial["spec"]["runSpec"]
                run["metadata"] |= {"namespace": self.namespace, "ownerReferences": [owner(trial)]}
                batch.create_namespaced_job(self.namespace, run)
        if not done(status):
            condition(status, "Running", "TrialRunning", "Trial is running")
            ended = {c.type: c for c in (job.status.conditions or []) if c.status == "True"} if job else {}
            text = self._collected(name)
            if text is not None and STOPPED in text:
                condition(status, "EarlyStopped", "TrialEarlyStopped", "Trial is early stopped")  # Running stays
                self._observe(name, status, text)
            elif "Failed" in ended:
                why = f"Job message: {ended['Failed'].message}"
                end(status, "Failed", "TrialFailed", f"Trial has failed. {why}")
            elif "Complete" in ended and text is not None:
                self._observe(name, status, text)
                if self.experiment.value(self._observations[name]) is None:
                    reason = "TrialMetricsUnavailable"
                    condition(status, "MetricsUnavailable", reason, "Metrics are not available")
                else:
                    end(status, "Succeeded", "TrialSucceeded", "Trial has succeeded")
        if done(status) and self._suggester:
            failed = holds(status, "Failed") or holds(status, "MetricsUnavailable")
            observation = self._observations.get(name, Observation())
            assignments = {a["name"]: a["value"] for a in trial["spec"]["parameterAssignments"]}
            self._suggester.tell(assignments, None if failed else self.experiment.value(observation))
        if json.dumps(status) != before:
            self._save("trials", trial)

    def _collected(self, trial: str) -> str | None:
        """What the collector of a trial's newest pod printed, when it has ended."""
        core = client.CoreV1Api()
        pods = core.list_namespaced_pod(self.namespace, label_selector=f"{OF_TRIAL}={trial}").items
        for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp)[-1:]:
            for container in pod.status.container_statuses or []:
                if container.name == COLLECTOR and container.state.terminated:
                    text = core.read_namespaced_pod_log(pod.metadata.name, self.namespace, container=COLLECTOR)
                    return KLOG_PREFIX.sub("", text)
        return None

    def _observe(self, trial: str, status: Object, text: str) -> None:
        observation = self._observations[trial] = Observation()
        for line in text.splitlines():
            self.experiment.observe(line, observation)
        status["observation"] = {
            "metrics": [
                {"name": name, "latest": repr(values[-1]), "min": repr(min(values)), "max": repr(max(values))}
                for name, values in observation.items()
            ]
        }

    # The Experiment

    def _summarize(self) -> None:
        """Counts, the best trial, and whether it is over: the goal first, then failures, then the number of trials."""
        names: dict[str, list[str]] = {}
        for trial in self.trials:
            names.setdefault(state(trial["status"]), []).append(trial["metadata"]["name"])
        for of_state in ("Pending", "Running", "Succeeded", "Failed", "Killed", "EarlyStopped", "MetricsUnavailable"):
            key, found = f"{of_state[0].lower()}{of_state[1:]}TrialList", names.get(of_state, [])
            count = "trialMetricsUnavailable" if of_state == "MetricsUnavailable" else f"trials{of_state}"
            for field, value in ((key, found), (count, len(found))):
                self.status[field] = value
                if not value:
                    del self.status[field]
        self.status["trials"] = len(self.trials)
        best = None
        for trial in self.trials:
            value = self.experiment.value(self._observation(trial))
            if value is not None and self.experiment.better(value, best):
                best = value
                assignments, observation = trial["spec"]["parameterAssignments"], trial["status"]["observation"]
                self.status["currentOptimalTrial"] = {
                    "bestTrialName": trial["metadata"]["name"],
                    "parameterAssignments": assignments,
                    "observation": observation,
                }
        failed = len(names.get("Failed", [])) + len(names.get("MetricsUnavailable", []))
        ended = len(self.trials) - len(names.get("Running", [])) - len(names.get("Pending", []))
        active = len(self.trials) - ended
        if completed(self.status):
            if self._resumes:
                self.status["conditions"] = [c for c in self.status["conditions"] if c["type"] != "Succeeded"]
                condition(self.status, "Restarting", "ExperimentRestarting", "Experiment is restarted")
        elif self.experiment.reached(best):
            reason = "Experiment has succeeded because Objective goal has reached"
            end(self.status, "Succeeded", "ExperimentGoalReached", reason)
        elif failed >= self.experiment.max_failed and failed:
            end(self.status, "Failed", "ExperimentFailed", "Experiment has failed because max failed count has reached")
        elif ended >= self.experiment.max_trials:
            reason = "Experiment has succeeded because max trial count has reached"
            end(self.status, "Succeeded", "ExperimentMaxTrialsReached", reason)
        elif self._exhausted and not active:
            reason = "Experiment has succeeded because suggestion service has reached the end"
            end(self.status, "Succeeded", "ExperimentSuggestionEndReached", reason)
        elif self.trials:
            condition(self.status, "Running", "ExperimentRunning", "Experiment is running")

    def _observation(self, trial: Object) -> Observation:
        """What is known of a trial: all values, or after a restart of this program those in its status."""
        name = trial["metadata"]["name"]
        if name not in self._observations and "observation" in trial["status"]:
            observation = self._observations[name] = Observation()
            for metric in trial["status"]["observation"]["metrics"]:
                observation[metric["name"]] = [float(metric[k]) for k in ("min", "max", "latest")]
        return self._observations.get(name, Observation())

    def _fill(self) -> None:
        """As many running trials as should be: new ones, or the newest deleted."""
        active = [t for t in self.trials if state(t["status"]) in ("Running", "Pending")]
        wanted = min(self.experiment.parallel, self.experiment.max_trials - len(self.trials) + len(active))
        for trial in sorted(active, key=lambda t: t["metadata"]["creationTimestamp"])[max(wanted, 0) :]:
            self._delete("trials", trial["metadata"]["name"])
        if self._suggester is None:
            earlier = [
                (
                    {a["name"]: a["value"] for a in t["spec"]["parameterAssignments"]},
                    self.experiment.value(self._observation(t)),
                )
                for t in self.trials
            ]
            self._suggester = Suggester(self.experiment, earlier)
        suggested = []
        while not self._exhausted and len(active) + len(suggested) < wanted:
            if (assignments := self._suggester.ask()) is None:
                self._exhausted = True
                break
            suffix = "".join(random.choices(string.ascii_lowercase + string.digits, k=8))
            suggested.append(self._trial(f"{self.experiment.name}-{suffix}", assignments))
        if suggested:
            self._suggest(suggested)
        for trial in suggested:
            self.objects.create_namespaced_custom_object(GROUP, VERSION, self.namespace, "trials", trial)

    def _trial(self, name: str, assignments: dict[str, str]) -> Object:
        spec, template = self.manifest["spec"], self.manifest["spec"]["trialTemplate"]
        trial: Object = {
            "apiVersion": API_VERSION,
            "kind": "Trial",
            "metadata": {
                "name": name,
                "labels": {**self.manifest["metadata"].get("labels", {}), OF_EXPERIMENT: self.experiment.name},
                "ownerReferences": [owner(self.manifest)],
            },
            "spec": {
                "objective": spec["objective"],
                "parameterAssignments": [{"name": k, "value": v} for k, v in assignments.items()],
                "runSpec": self.experiment.job(name, assignments),
                "primaryContainerName": template["primaryContainerName"],
                "retainRun": template.get("retain", False),
                "metricsCollector": spec.get("metricsCollectorSpec", {"collector": {"kind": "StdOut"}}),
            },
        }
        succeeded = [t for t in self.trials if state(t["status"]) == "Succeeded"]
        if rule := self.experiment.rule([self._observation(t) for t in succeeded]):
            comparison = "less" if self.experiment.maximize else "greater"
            named = {"name": self.experiment.metric, "value": repr(rule.value), "comparison": comparison}
            trial["spec"]["earlyStoppingRules"] = [{**named, "startStep": rule.start_step}]
        return trial

    def _suggest(self, trials: list[Object]) -> None:
        """Record new assignments in the Suggestion, which is there from the first on."""
        name, spec = self.experiment.name, self.manifest["spec"]
        found = [s for s in self._list("suggestions") if s["metadata"]["name"] == name]
        body: Object = {
            "apiVersion": API_VERSION,
            "kind": "Suggestion",
            "metadata": {"name": name, "labels": {OF_EXPERIMENT: name}, "ownerReferences": [owner(self.manifest)]},
            "spec": {"algorithm": spec["algorithm"], "resumePolicy": spec.get("resumePolicy", "Never"), "requests": 0},
        }
        if not found:
            arguments = (GROUP, VERSION, self.namespace, "suggestions", body)
            found = [self.objects.create_namespaced_custom_object(*arguments)]
        suggestion = found[0]
        new = [
            {"name": t["metadata"]["name"], "parameterAssignments": t["spec"]["parameterAssignments"]} for t in trials
        ]
        assigned = [*suggestion.get("status", {}).get("suggestions", []), *new]
        suggestion["spec"]["requests"] = len(assigned)
        self.objects.replace_namespaced_custom_object(GROUP, VERSION, self.namespace, "suggestions", name, suggestion)
        suggestion = next(s for s in self._list("suggestions") if s["metadata"]["name"] == name)
        status = suggestion.setdefault("status", {"startTime": now()})
        status |= {"suggestions": assigned, "suggestionCount": len(assigned)}
        condition(status, "Running", "SuggestionRunning", "Suggestion is running")
        self._save("suggestions", suggestion)

    # The API

    def _list(self, plural: str) -> list[Object]:
        name = self.manifest["metadata"]["name"]
        found: list[Object] = self.objects.list_namespaced_custom_object(
            GROUP, VERSION, self.namespace, plural, label_selector=f"{OF_EXPERIMENT}={name}"
        )["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def _save(self, plural: str, item: Object) -> None:
        with contextlib.suppress(ApiException):  # changed or deleted meanwhile: the next look sees it
            self.objects.replace_namespaced_custom_object_status(
                GROUP, VERSION, self.namespace, plural, item["metadata"]["name"], item
            )

    def _delete(self, plural: str, name: str) -> None:
        self.objects.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, plural, name)


# Conditions, as Katib keeps them: the latest last, one of each type


def condition(status: Object, kind: str, reason: str, message: str, value: str = "True") -> None:
    conditions = status.setdefault("conditions", [])
    if conditions and (conditions[-1]["type"], conditions[-1]["status"]) == (kind, value):
        return
    made = {"type": kind, "status": value, "reason": reason, "message": message}
    made |= {"lastUpdateTime": now(), "lastTransitionTime": now()}
    status["conditions"] = [c for c in conditions if c["type"] != kind] + [made]


def end(status: Object, kind: str, reason: str, message: str) -> None:
    for c in status["conditions"]:
        if c["type"] == "Running":
            c["status"] = "False"
    condition(status, kind, reason, message)
    status["completionTime"] = now()


def holds(status: Object, *kinds: str) -> bool:
    return any(c["type"] in kinds and c["status"] == "True" for c in status.get("conditions", []))


def restartable(experiment: Object) -> bool:
    conditions = experiment.get("status", {}).get("conditions", [])
    policy = experiment["spec"].get("resumePolicy")
    reasons = [c["reason"] for c in conditions if c["type"] == "Succeeded"]
    return reasons == ["ExperimentMaxTrialsReached"] and policy in ("LongRunning", "FromVolume")


def completed(experiment_status: Object) -> bool:
    return holds(experiment_status, "Succeeded", "Failed")


def done(trial_status: Object) -> bool:
    return holds(trial_status, "Succeeded", "Failed", "EarlyStopped", "MetricsUnavailable")


def state(trial_status: Object) -> str:
    for kind in ("Failed", "Succeeded", "MetricsUnavailable", "EarlyStopped", "Running"):
        if holds(trial_status, kind):
            return kind
    return "Pending"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def owner(item: Object) -> Object:
    keys = {"apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"]}
    return {**keys, "uid": item["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}


# The webhooks


def refusal(request: Object) -> str | None:
    """Why Katib's webhook refuses an Experiment."""
    experiment, old = request["object"], request.get("oldObject")
    name, namespace = experiment["metadata"]["name"], request["namespace"]
    labels = client.CoreV1Api().read_namespace(namespace).metadata.labels or {}
    if labels.get(LABEL) != "enabled":
        where = f'Cannot create the Experiment "{name}" in namespace "{namespace}"'
        return f'{where}: the namespace lacks label "{LABEL}: enabled"'
    spec = experiment["spec"]
    if old and spec != old["spec"]:
        status = old.get("status", {})
        if completed(status) and not restartable(old):
            return (
                f"spec.resumePolicy: Invalid value: {json.dumps(spec.get('resumePolicy', 'Never'))}: Experiment can be "
                "restarted if it is in succeeded state by reaching max trials and spec.resumePolicy = LongRunning or "
                "spec.resumePolicy = FromVolume, when experiment is completed"
            )
        if spec.get("maxTrialCount", 0) <= status.get("trials", 0):
            count = spec.get("maxTrialCount")
            return f"spec.maxTrialCount: Invalid value: {count}: must be greater than status.trials count"
        if {**spec, **dict.fromkeys(EDITABLE)} != {**old["spec"], **dict.fromkeys(EDITABLE)}:
            *most, last = (f"spec.{name}" for name in EDITABLE)
            return f"spec: Forbidden: only {', '.join(most)} and {last} are editable"
    if found := empty(spec["trialTemplate"].get("trialSpec", {})):
        path, value = found
        why = f"unable to convert: {path} - {value} to Job"
        return f'spec.trialTemplate: Invalid value: "": invalid spec.trialTemplate: {why}'
    return None


def empty(node: Any, path: str = "") -> tuple[str, Any] | None:
    """The first empty value in a trialSpec: in Go it would be left out, so the two sides would differ."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    for key, value in items:
        here = f"{path}/{key}"
        nothing = value is None or value in ("", {}, []) or (value is False and key in NO_POINTERS)
        if nothing and not (value == {} and key in EMPTY_IS_FINE):
            return here, value
        if found := empty(value, here):
            return found
    return None


def injected(request: Object) -> list[Object]:
    """What changes in a pod of a trial, as a JSON patch; nothing for other pods."""
    pod, namespace = request["object"], request["namespace"]
    jobs = [o["name"] for o in pod["metadata"].get("ownerReferences", []) if o["kind"] == "Job"]
    objects = client.CustomObjectsApi()
    try:
        trial = objects.get_namespaced_custom_object(GROUP, VERSION, namespace, "trials", jobs[0]) if jobs else None
    except ApiException:
        trial = None
    if trial is None:
        return []
    spec = pod["spec"]
    primary = next(c for c in spec["containers"] if c["name"] == trial["spec"]["primaryContainerName"])
    mount = {"name": "metrics-volume", "mountPath": str(Path(METRICS_FILE).parent)}
    objective = trial["spec"]["objective"]
    keys = ("name", "value", "comparison", "startStep")
    rules = [";".join(str(rule[key]) for key in keys) for rule in trial["spec"].get("earlyStoppingRules", [])]
    filters = trial["spec"]["metricsCollector"].get("source", {}).get("filter", {}).get("metricsFormat", [])
    metrics = [objective["objectiveMetricName"], *objective.get("additionalMetricNames", [])]
    arguments = ["-t", jobs[0], "-m", ";".join(metrics), "-o-type", objective["type"]]
    arguments += ["-s-db", "katib-db-manager.kubeflow:6789", "-path", METRICS_FILE]
    arguments += ["-f", ";".join(filters)] if filters else []
    arguments += [word for rule in rules for word in ("-stop-rule", rule)]
    collector = {
        "name": COLLECTOR,
        "image": primary["image"],  # the real one has its own
        "imagePullPolicy": primary.get("imagePullPolicy", "IfNotPresent"),
        "command": ["python3", "-c", COLLECTOR_PROGRAM],
        "args": arguments,
        "resources": {"requests": {"cpu": "50m", "memory": "10Mi"}, "limits": {"cpu": "500m", "memory": "100Mi"}},
        "volumeMounts": [mount],
    }
    words = [*primary["command"], *primary.get("args", [])]
    shell, words = (words[:2], words[2:]) if words[:2] in (["sh", "-c"], ["bash", "-c"]) else (["sh", "-c"], words)
    folder = mount["mountPath"]
    line = f"{' '.join(words)} 1>{METRICS_FILE} 2>&1"
    if rules:
        line += (
            f" || if test -f {folder}/$$$$.pid && [ $(head -n 1 {folder}/$$.pid) = early-stopped ]; then echo Training "
            "Container was Early Stopped; else echo Training Container was Failed; exit 1; fi"
        )
    primary |= {"command": shell, "args": [f"{line} && echo completed > {folder}/$$$$.pid"]}
    primary.setdefault("volumeMounts", []).append(mount)
    field = {"fieldRef": {"fieldPath": f"metadata.labels['{OF_TRIAL}']"}}
    primary.setdefault("env", []).append({"name": "KATIB_TRIAL_NAME", "valueFrom": field})
    spec["containers"].append(collector)
    spec["shareProcessNamespace"] = True
    spec.setdefault("volumes", []).append({"name": "metrics-volume", "emptyDir": {}})
    labels = {**pod["metadata"].get("labels", {}), **trial["metadata"].get("labels", {}), OF_TRIAL: jobs[0]}
    return [
        {"op": "replace", "path": "/spec", "value": spec},
        {"op": "add", "path": "/metadata/labels", "value": labels},
    ]


class Webhooks(http.server.BaseHTTPRequestHandler):
    """Answers the API server's AdmissionReviews."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        response: Object = {"uid": request["uid"], "allowed": True}
        if self.path.startswith("/pods"):
            if patch := injected(request):
                text = base64.b64encode(json.dumps(patch).encode()).decode()
                response |= {"patchType": "JSONPatch", "patch": text}
        elif message := refusal(request):
            response |= {"allowed": False, "status": {"code": 400, "message": message}}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def serve_webhooks() -> None:
    """Listen where the API server can come, and tell it so. Its calls go to an address of this machine."""
    api = urllib.parse.urlparse(client.Configuration.get_default_copy().host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((api.hostname, api.port or 443))
        address = probe.getsockname()[0]
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key", f"{folder}/certificate"
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=katib"
        files = ["-keyout", key, "-out", certificate, "-addext", f"subjectAltName=IP:{address}"]
        subprocess.run([*words.split(), *files], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        bundle = base64.b64encode(Path(certificate).read_bytes()).decode()
    server = http.server.ThreadingHTTPServer((address, 0), Webhooks)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://{address}:{server.server_address[1]}"

    def webhook(name: str, path: str, rule: Object, **more: Any) -> Object:
        common = {"sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail"}
        where = {"url": f"{url}/{path}", "caBundle": bundle}
        return {"name": f"{name}.katib.kubeflow.org", "clientConfig": where, "rules": [rule], **common, **more}

    experiments = {"apiGroups": [GROUP], "apiVersions": [VERSION], "resources": ["experiments"]}
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
    validating = webhook("validator.experiment", "experiments", {**experiments, "operations": ["CREATE", "UPDATE"]})
    labelled = {"matchLabels": {LABEL: "enabled"}}
    mutating = webhook("mutator.pod", "pods", pods, namespaceSelector=labelled)
    registry = client.AdmissionregistrationV1Api()
    for create, delete, item in (
        (
            registry.create_validating_webhook_configuration,
            registry.delete_validating_webhook_configuration,
            validating,
        ),
        (registry.create_mutating_webhook_configuration, registry.delete_mutating_webhook_configuration, mutating),
    ):
        with contextlib.suppress(ApiException):  # of an earlier run of this program
            delete(GROUP)
        create({"metadata": {"name": GROUP}, "webhooks": [item]})


def main(kubeconfig: str) -> None:
    config.load_kube_config(kubeconfig)
    serve_webhooks()
    print("ready", flush=True)
    searches: dict[str, Search] = {}
    objects = client.CustomObjectsApi()
    while True:
        for experiment in objects.list_cluster_custom_object(GROUP, VERSION, "experiments")["items"]:
            if "deletionTimestamp" in experiment["metadata"]:
                continue
            search = searches.setdefault(experiment["metadata"]["uid"], Search(experiment))
            try:
                search.look(experiment)
            except ApiException as error:  # something went meanwhile
                print(f"{experiment['metadata']['name']}: {error.status} {error.reason}", file=sys.stderr, flush=True)
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main(sys.argv[1])
