"""A Kubernetes cluster, the one place that talks to it.

The kubernetes package reads and watches objects; kubectl carries exec, logs, copies and port-forwards; helm installs.
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.experiment import API_VERSION, Manifest

NAMESPACE = "nas"
APIS = {  # kind: API version
    **dict.fromkeys(("Experiment", "Trial"), API_VERSION),
    **dict.fromkeys(("Deployment", "StatefulSet"), "apps/v1"),
    **dict.fromkeys(("Pod", "Namespace", "Node", "PersistentVolumeClaim"), "v1"),
    "Job": "batch/v1",
    "StorageClass": "storage.k8s.io/v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "ValidatingWebhookConfiguration": "admissionregistration.k8s.io/v1",
}
SECONDS = 15.0  # to wait for an answer
RETRY = 2.0  # seconds between attempts to watch again


class Target(StrEnum):
    """Where something runs."""

    AUTO = "auto"
    LOCAL = "local"
    MICROK8S = "microk8s"
    CLUSTER = "cluster"


class ClusterError(NasError):
    """What the cluster refused or couldn't do."""


def choose(target: Target) -> tuple[Target, str]:
    """Where to run, and why. `auto` is MicroK8s where that runs, lets us in and has Katib; else this machine.

    Raises ClusterError when MicroK8s is asked for and can't be used.
    """
    if target is Target.LOCAL:
        return target, "no cluster is asked for"
    if target is Target.CLUSTER:
        return target, "the current kubeconfig context"
    problem = _microk8s_problem()
    if target is Target.MICROK8S and problem:
        raise ClusterError(problem)
    return (Target.LOCAL, problem) if problem else (Target.MICROK8S, "MicroK8s runs here and has Katib")


def _microk8s_problem() -> str:
    if not shutil.which("microk8s"):
        return "MicroK8s is not installed here"
    command = ["microk8s", "kubectl", "get", "--raw", f"/apis/{API_VERSION}", f"--request-timeout={SECONDS:.0f}s"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "MicroK8s doesn't answer"
    said = (result.stdout + result.stderr).lower()
    if result.returncode == 0:
        return ""
    if "permission" in said:
        return "this user may not use MicroK8s: sudo usermod -a -G microk8s $USER, then log in again"
    if "not running" in said or "refused" in said:
        return "MicroK8s is not running: microk8s start"
    return "MicroK8s has no Katib: nas cluster setup --target microk8s"


class Cluster:
    """One namespace of the cluster that a target names. Nothing is asked before it is needed."""

    def __init__(self, target: Target, namespace: str, home: Path) -> None:
        self.target, self.namespace, self._home = target, namespace, home
        self.kubectl = ["microk8s", "kubectl"] if target is Target.MICROK8S else ["kubectl"]
        if not shutil.which(self.kubectl[0]):
            hint = "https://microk8s.io" if target is Target.MICROK8S else "https://kubernetes.io/docs/tasks/tools/"
            raise ClusterError(f"{self.kubectl[0]} is not on PATH: install it ({hint})")

    @property
    def options(self) -> str:
        """What a person adds to a nas command to mean this cluster and namespace."""
        return f"--target {self.target}" + ("" if self.namespace == NAMESPACE else f" --namespace {self.namespace}")

    def words(self, *words: str) -> str:
        """A kubectl command for this cluster and namespace, as a person would type it."""
        return " ".join([*self.kubectl, "-n", self.namespace, *words])

    # kubectl and helm

    def command(self, *words: str, namespace: str | None = None) -> list[str]:
        """kubectl's words in this namespace, another one, or none (empty)."""
        chosen = self.namespace if namespace is None else namespace
        return [*self.kubectl, *(["--namespace", chosen] if chosen else []), *words]

    def call(self, *words: str, stdin: str | None = None, namespace: str | None = None) -> str:
        """What kubectl prints. Raises ClusterError with its reason."""
        command = self.command(*words, namespace=namespace)
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(result.stderr.strip() or f"{self.words(words[0])}: exit status {result.returncode}")
        return result.stdout

    def start(self, *words: str, stdin: bool = False) -> "subprocess.Popen[bytes]":
        """A running kubectl, its output, its errors and, if asked, its input on pipes."""
        return subprocess.Popen(
            self.command(*words),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )

    def helm(self, *words: str, stdin: str | None = None) -> str:
        """What helm prints. Raises ClusterError with its reason."""
        from nas import chart

        with self._kubeconfig() as kubeconfig:
            command = [str(chart.helm(self._home)), "--namespace", self.namespace, *kubeconfig, *words]
            result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(f"helm {words[0]} failed:\n{chart.reason(result.stderr)}")
        return result.stdout

    def values(self, release: str) -> Manifest:
        """All values of an installed release. Raises ClusterError when there is none of that name."""
        try:
            found: Manifest = json.loads(self.helm("get", "values", release, "--all", "--output", "json"))
        except ClusterError as error:
            there = ", ".join(r["name"] for r in json.loads(self.helm("list", "--output", "json"))) or "none"
            raise ClusterError(f"no release {release} in namespace {self.namespace} (there: {there})") from error
        return found

    @contextlib.contextmanager
    def _kubeconfig(self) -> Iterator[list[str]]:
        if self.target is not Target.MICROK8S:
            yield []
            return
        with tempfile.NamedTemporaryFile("w", prefix="nas-", suffix=".kubeconfig") as file:  # mode 0600
            file.write(self._microk8s_config)
            file.flush()
            yield ["--kubeconfig", file.name]

    @cached_property
    def _microk8s_config(self) -> str:
        result = subprocess.run(["microk8s", "config"], capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(f"microk8s config: {(result.stdout + result.stderr).strip()}")
        return result.stdout

    # Objects

    @cached_property
    def _client(self) -> Any:
        import yaml
        from kubernetes import config, dynamic  # half a second that a local run has no use for

        try:
            if self.target is Target.MICROK8S:
                api = config.new_client_from_config_dict(yaml.safe_load(self._microk8s_config))
            else:
                api = config.new_client_from_config()
        except config.ConfigException as error:
            raise ClusterError(
                f"no usable kubeconfig ({error}): set KUBECONFIG, or kubectl config use-context"
            ) from error
        api.configuration.retries = False  # each caller has a rule of its own
        with self._told():
            return dynamic.DynamicClient(api)

    def _resource(self, kind: str, **query: Any) -> tuple[Any, dict[str, Any]]:
        """The client's handle for a kind, and the query completed for it."""
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        client = self._client
        with self._told():
            try:
                resource = client.resources.get(api_version=APIS[kind], kind=kind)
            except ResourceNotFoundError:
                hint = ": nas cluster setup installs Katib" if APIS[kind] == API_VERSION else ""
                raise ClusterError(f"the cluster knows no {kind}{hint}") from None
        namespace = {"namespace": self.namespace} if resource.namespaced else {}
        return resource, {"_request_timeout": SECONDS, **namespace, **query}

    def get(self, kind: str, name: str, **query: Any) -> Manifest | None:
        """An object, None when there is none. Raises ClusterError."""
        from kubernetes.dynamic.exceptions import NotFoundError

        resource, query = self._resource(kind, name=name, **query)
        with self._told():
            try:
                return dict(resource.get(**query).to_dict())
            except NotFoundError:
                return None

    def objects(self, kind: str, selector: str = "", **query: Any) -> list[Manifest]:
        """All objects of a kind with these labels. Raises ClusterError."""
        resource, query = self._resource(kind, label_selector=selector, **query)
        with self._told():
            return list(resource.get(**query).to_dict()["items"])

    def watch(self, kind: str, selector: str, stop: threading.Event) -> Iterator[Manifest]:
        """Objects with these labels as they are and change, until `stop`; a lost connection is made again.

        A deleted object comes a last time, with `deleted: true`. Raises ClusterError when the first list fails.
        """
        version, first = None, True
        while not stop.is_set():
            try:
                resource, query = self._resource(kind, label_selector=selector)
                if version is None:
                    with self._told():
                        listed = resource.get(**query).to_dict()
                    version, first = listed["metadata"]["resourceVersion"], False
                    yield from listed["items"]
                del query["_request_timeout"]
                with self._told():
                    for event in resource.watch(resource_version=version, timeout=int(SECONDS), **query):
                        found = event["raw_object"]
                        if event["type"] == "ERROR":  # such as 410: too old to go on from
                            version = None
                            break
                        version = found["metadata"]["resourceVersion"]
                        yield found | {"deleted": event["type"] == "DELETED"}
            except ClusterError:
                if first:
                    raise
                version = None
                stop.wait(RETRY)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The client's many errors as one."""
        from kubernetes.client.exceptions import ApiException
        from kubernetes.dynamic.exceptions import DynamicApiError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ApiException, DynamicApiError) as error:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                raise ClusterError(f"the cluster refuses: {json.loads(str(error.body))['message']}") from error
            raise ClusterError(f"the cluster refuses: {error.reason}") from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the cluster can't be reached: {error}") from error


def trouble(pod: Manifest) -> str:
    """What keeps a pod from running; empty when nothing does, or it is too early to tell."""
    status = pod.get("status", {})
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "ContainerCreating")
        if reason not in ("ContainerCreating", "PodInitializing"):
            hint = f" (nas images import {image_name(container['image'])})" if "Image" in reason else ""
            return f"{reason}: {waiting.get('message', '')}{hint}"
    for found in status.get("conditions", []):
        if found["type"] == "PodScheduled" and found["status"] == "False":
            return f"{found.get('reason')}: {found.get('message', '')}"
    return ""


def image_name(reference: str) -> str:
    """The last part of an image's name, without tag and digest: the folder under images/."""
    return reference.rsplit("/", 1)[-1].split("@")[0].split(":")[0]
