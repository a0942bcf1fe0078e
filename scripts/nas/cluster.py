"""A Kubernetes cluster, by the commands a person would type, kubectl and helm, and what mends what they refuse."""

import atexit
import json
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import yaml

from nas import chart
from nas.errors import NasError
from nas.experiment import API_VERSION, Manifest

NAMESPACE = "nas"
# Others have kinds of these names too.
NAMES = {"Experiment": "experiments.kubeflow.org", "Trial": "trials.kubeflow.org"}
LIMIT = "--request-timeout=15s"
# What the commands say when something is amiss, and what mends it.
MENDS = {
    "access microk8s": "this user may not use MicroK8s: sudo usermod -a -G microk8s $USER, then log in again",
    "microk8s is not running": "MicroK8s is not running: microk8s start",
    r"(?<!\.)\bgit\b": "Katib comes from GitHub; without internet: --manifests DIR, a copy of that folder",
    "timed out waiting": "what isn't ready, and why: nas doctor",
    r"not (find|have) .*(resource|experiments|trials)|no matches for kind": "there is no Katib: nas cluster setup",
    r"\bforbidden\b": "whoever runs the cluster can give that right; what this user may: kubectl auth can-i --list",
    r"unauthorized|must be logged in|x509": "log in again, or choose another: kubectl config get-contexts",
    r"no configuration|localhost:8080|context .* does not exist": "choose a cluster: kubectl config use-context NAME",
    r"refused|no such host|no route|timeout|unreachable": "is it running? kubectl cluster-info, microk8s start",
    r"permission denied": "it may need root: call nas with sudo",
}


class Target(StrEnum):
    """Where something runs."""

    AUTO = "auto"
    LOCAL = "local"
    MICROK8S = "microk8s"
    CLUSTER = "cluster"


class ClusterError(NasError):
    """What a command refused or couldn't do: which one, what it said, and what mends it."""


def choose(target: Target) -> tuple[Target, str]:
    """Where to run, and why. `auto` is MicroK8s where that runs, lets us in and has Katib; else this machine.

    Raises ClusterError when MicroK8s is asked for and can't be used.
    """
    if target is Target.LOCAL:
        return target, "no cluster is asked for"
    if target is Target.CLUSTER:
        return target, "the current kubeconfig context"
    problem = "" if shutil.which("microk8s") else "no MicroK8s here: https://microk8s.io"
    if not problem:
        try:
            output(["microk8s", "kubectl", "get", "--raw", f"/apis/{API_VERSION}", LIMIT])
        except ClusterError as error:
            problem = str(error).splitlines()[-1]
    if target is Target.MICROK8S and problem:
        raise ClusterError(problem)
    return (Target.LOCAL, problem) if problem else (Target.MICROK8S, "MicroK8s runs here and has Katib")


def last_line(text: str) -> str:
    """The line that tells most of what a command said; kubectl adds its own to a failure in a pod."""
    lines = [line for line in text.splitlines() if not line.startswith("command terminated with exit code")]
    return (lines or [text])[-1].removeprefix("error: ")


def output(command: list[str], stdin: str | None = None, reason: Callable[[str], str] = last_line) -> str:
    """What a command prints. Raises ClusterError with the `reason` in what it said, and what mends it."""
    shown = [Path(command[0]).name, *(word for word in command[1:] if not word.startswith("--") or "=" not in word)]
    try:
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ClusterError(f"{command[0]} can't be called ({error.strerror}): install it, or set PATH") from error
    if result.returncode:
        said = result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}"
        ours = "ERROR: " in said  # a guard of the chart, which tells by itself
        mend = next((m for known, m in MENDS.items() if not ours and re.search(known, said, re.IGNORECASE)), "")
        where = textwrap.shorten(" ".join(shown), 100, placeholder=" …")
        raise ClusterError(f"{where}: {reason(said)}" + (f"\n{mend}" if mend else ""))
    return result.stdout


class Cluster:
    """One namespace of the cluster that a target names. Nothing is asked before it is needed."""

    def __init__(self, target: Target, namespace: str, home: Path) -> None:
        self.target, self.namespace, self.home = target, namespace, home
        self.kubectl = ["microk8s", "kubectl"] if target is Target.MICROK8S else ["kubectl"]
        if not shutil.which(self.kubectl[0]):
            raise ClusterError(f"{self.kubectl[0]} is not on PATH: install it")

    @property
    def options(self) -> str:
        """What a person adds to a nas command to mean this cluster and namespace."""
        return f"--target {self.target}" + ("" if self.namespace == NAMESPACE else f" --namespace {self.namespace}")

    def words(self, *words: str, namespace: str = "") -> str:
        """A kubectl command for this namespace or another, as a person would type it."""
        return " ".join([*self.kubectl, "-n", namespace or self.namespace, *words])

    def command(self, *words: str, namespace: str = "") -> list[str]:
        """kubectl's words in this namespace or another."""
        return [*self.kubectl, "--namespace", namespace or self.namespace, *words]

    def call(self, *words: str, stdin: str | None = None, namespace: str = "") -> str:
        """What kubectl prints. Raises ClusterError."""
        return output(self.command(*words, namespace=namespace), stdin)

    def start(self, *words: str, stdin: bool = False) -> "subprocess.Popen[bytes]":
        """A running kubectl, its output, its errors and, if asked, its input on pipes; it ends with this process."""
        pipe, given = subprocess.PIPE, subprocess.PIPE if stdin else subprocess.DEVNULL
        # With a session of its own, Ctrl-C is for this process, which then ends that one.
        process = subprocess.Popen(self.command(*words), stdin=given, stdout=pipe, stderr=pipe, start_new_session=True)
        atexit.register(process.kill)
        return process

    def helm(self, *words: str, stdin: str | None = None) -> str:
        """What helm prints. Raises ClusterError with its reason."""
        command = [str(chart.helm(self.home)), "--namespace", self.namespace, *words]
        if self.target is not Target.MICROK8S:
            return output(command, stdin, chart.reason)
        with tempfile.NamedTemporaryFile("w", prefix="nas-", suffix=".kubeconfig") as file:  # mode 0600
            file.write(output(["microk8s", "config"]))
            file.flush()
            return output([*command, "--kubeconfig", file.name], stdin, chart.reason)

    def upgrade(self, *words: str, stdin: str | None = None) -> None:
        """`helm upgrade`, without the chart's look at the namespace where this user may not read it."""
        try:
            self.get("Namespace", self.namespace)
        except ClusterError as error:
            if "forbidden" not in str(error).lower():
                raise
            print(f"this user may not read namespace {self.namespace}: installing without a look at its label")
            words = (*words, "--set", "global.checkCluster=false")
        self.helm("upgrade", *words, stdin=stdin)

    def values(self, release: str) -> Manifest:
        """All values of an installed release. Raises ClusterError when there is none of that name."""
        try:
            found: Manifest = json.loads(self.helm("get", "values", release, "--all", "--output", "json"))
        except ClusterError as error:
            if "not found" not in str(error):
                raise
            there = ", ".join(r["name"] for r in json.loads(self.helm("list", "--output", "json"))) or "none"
            hint = f"no release {release} in namespace {self.namespace} (there: {there}): --release or --namespace"
            raise ClusterError(f"{hint} names another, nas run VALUES installs one") from error
        return found

    def template(self, release: str, root: Path, name: str, changes: Manifest) -> Manifest:
        """The object of a template, PART/NAME, as a release with changed values of that part would have it."""
        values, (part, file) = self.values(release), name.split("/")
        values[part] |= changes
        words = ["--values", "-", "--show-only", f"charts/{part}/templates/{file}.yaml"]
        found = self.helm("template", release, str(root / "charts" / "nas"), *words, stdin=json.dumps(values))
        return dict(yaml.safe_load(found))

    def get(self, kind: str, name: str) -> Manifest | None:
        """An object, None when there is none. Raises ClusterError."""
        found = self.call("get", NAMES.get(kind, kind), name, "--ignore-not-found=true", "--output=json", LIMIT)
        return dict(json.loads(found)) if found else None

    def objects(self, kind: str, selector: str = "", namespace: str = "") -> list[Manifest]:
        """All objects of a kind with these labels. Raises ClusterError."""
        words = ["get", NAMES.get(kind, kind), f"--selector={selector}", "--output=json", LIMIT]
        return list(json.loads(self.call(*words, namespace=namespace))["items"])


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
