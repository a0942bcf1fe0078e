"""What a search needs of a cluster: looked at (`nas doctor`) and prepared (`nas cluster setup`)."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas import chart, images
from nas.cluster import Cluster, ClusterError, Target
from nas.errors import NasError
from nas.experiment import Manifest
from nas.progress import condition

KATIB = "v0.19.0"
KATIB_URL = "github.com/kubeflow/katib.git/manifests/v1beta1/installs/katib-standalone?ref="
KATIB_NAMESPACE = "kubeflow"
KATIB_PARTS = ("katib-controller", "katib-db-manager", "katib-mysql", "katib-ui")
WEBHOOK = "validator.experiment.katib.kubeflow.org"
LABEL = ("katib.kubeflow.org/metrics-collector-injection", "enabled")
ADDONS = ("dns", "hostpath-storage")
OLDEST = (1, 28)
MOST_IMAGES = 50  # kubelet lists no more of a node's
LEAST_DISK = 2e9  # bytes


@dataclass(frozen=True)
class Finding:
    """What was looked at and what there is; with a `mend`, something is wrong and this command helps."""

    subject: str
    text: str
    mend: str = ""


def findings(cluster: Cluster, root: Path, home: Path, wanted: list[str]) -> Iterator[Finding]:
    """Everything a search needs, in the order in which it is needed. `wanted` are the images. Changes nothing."""
    setup = f"nas cluster setup {cluster.options}"
    try:
        versions = json.loads(cluster.call("version", "--output", "json", "--request-timeout", "10s"))
        server = versions["serverVersion"]["gitVersion"]
    except (ClusterError, ValueError, KeyError) as error:
        mend = "microk8s start" if cluster.target is Target.MICROK8S else "kubectl config use-context NAME"
        yield Finding("cluster", f"it doesn't answer: {str(error).splitlines()[-1]}", mend)
        return
    yield Finding("kubectl", versions["clientVersion"]["gitVersion"])
    try:
        yield Finding("helm", f"{chart.helm(home)}")
    except NasError as error:
        yield Finding("helm", str(error), "https://helm.sh/docs/intro/install/")
    old = tuple(map(int, re.findall(r"\d+", server)[:2])) < OLDEST
    yield Finding("Kubernetes", server, "upgrade the cluster to 1.28 or newer" if old else "")
    nodes = cluster.objects("Node")
    yield from _nodes(cluster, nodes)
    yield from _katib(cluster, setup)
    namespace = cluster.get("Namespace", cluster.namespace)
    if namespace is None:
        yield Finding("namespace", f"{cluster.namespace} isn't there", setup)
    elif namespace["metadata"].get("labels", {}).get(LABEL[0]) != LABEL[1]:
        mend = f"{' '.join(cluster.kubectl)} label namespace {cluster.namespace} {'='.join(LABEL)} --overwrite"
        yield Finding("namespace", f"{cluster.namespace} has no metrics-collector label: Katib refuses searches", mend)
    else:
        yield Finding("namespace", f"{cluster.namespace}, labelled for Katib's metrics collector")
    default = "storageclass.kubernetes.io/is-default-class"
    classes = cluster.objects("StorageClass")
    chosen = [c["metadata"]["name"] for c in classes if c["metadata"].get("annotations", {}).get(default) == "true"]
    if chosen:
        yield Finding("storage", f"default class {chosen[0]}")
    else:
        there = ", ".join(c["metadata"]["name"] for c in classes) or "none"
        mend = "microk8s enable hostpath-storage" if cluster.target is Target.MICROK8S else "set storage.storageClass"
        yield Finding("storage", f"no default storage class (there: {there})", mend)
    yield from _images(cluster, root, nodes, wanted)
    free = shutil.disk_usage(home if home.exists() else root).free
    text = f"{free / 1e9:.0f} GB free here"
    yield Finding("disk", text, "docker system prune" if free < LEAST_DISK else "")


def _nodes(cluster: Cluster, nodes: list[Manifest]) -> Iterator[Finding]:
    for node in nodes:
        name, info = node["metadata"]["name"], node["status"]["nodeInfo"]
        look = " ".join([*cluster.kubectl, "describe node", name])
        pressed = [c["type"] for c in node["status"]["conditions"] if "Pressure" in c["type"] and c["status"] == "True"]
        if not condition(node, "Ready"):
            yield Finding("node", f"{name} isn't ready", look)
        elif pressed:
            yield Finding("node", f"{name} has {', '.join(pressed)}: it takes no pods", look)
        else:
            yield Finding("node", f"{name}: {info['architecture']}, {info['kubeletVersion']}")
    if len(kinds := {node["status"]["nodeInfo"]["architecture"] for node in nodes}) > 1:
        mend = "nodeSelector: {kubernetes.io/arch: …} in the values"
        yield Finding("node", f"architectures differ ({', '.join(sorted(kinds))}): an image runs on one", mend)


def _katib(cluster: Cluster, setup: str) -> Iterator[Finding]:
    for kind in ("experiments", "trials", "suggestions"):
        if cluster.get("CustomResourceDefinition", f"{kind}.kubeflow.org") is None:
            yield Finding("Katib", f"the cluster doesn't know {kind}.kubeflow.org", setup)
            return
    there = {d["metadata"]["name"]: d for d in cluster.objects("Deployment", namespace=KATIB_NAMESPACE)}
    for name in KATIB_PARTS:
        if name not in there:
            yield Finding("Katib", f"{name} isn't there", setup)
        elif not there[name].get("status", {}).get("readyReplicas"):
            mend = " ".join([*cluster.kubectl, "-n", KATIB_NAMESPACE, "describe deployment", name])
            yield Finding("Katib", f"{name} isn't ready", mend)
        else:
            image = there[name]["spec"]["template"]["spec"]["containers"][0]["image"]
            yield Finding("Katib", f"{name} is ready ({image.rpartition('/')[2]})")
    hooks = [hook for one in cluster.objects("ValidatingWebhookConfiguration") for hook in one.get("webhooks", [])]
    if not any(hook["name"] == WEBHOOK and hook["clientConfig"].get("caBundle") for hook in hooks):
        mend = " ".join([*cluster.kubectl, "-n", KATIB_NAMESPACE, "rollout restart deployment katib-controller"])
        yield Finding("Katib", "its webhook isn't set up: experiments would be refused", mend)


def _images(cluster: Cluster, root: Path, nodes: list[Manifest], wanted: list[str]) -> Iterator[Finding]:
    """Images without a registry in their name must be on the nodes."""
    listed = {name for node in nodes for image in node["status"].get("images", []) for name in image.get("names") or []}
    runtime = None
    with contextlib.suppress(NasError):
        runtime = images.runtime("", cluster)
    for reference in (name for name in wanted if "/" not in name):
        name, _, tag = reference.partition(":")
        known = images.full(name, tag)
        there = known in listed
        if runtime and not there:  # kubelet tells a new image only after a while
            with contextlib.suppress(NasError):
                there = all(runtime.ids(known, node) for node in runtime.nodes)
        if there:
            yield Finding("image", f"{reference} is on the nodes")
        elif all(len(node["status"].get("images", [])) < MOST_IMAGES for node in nodes):
            ours = name in images.folders(root)
            mend = (
                f"nas images build {name} && nas images import {name} {cluster.options}" if ours else f"import {name}"
            )
            yield Finding("image", f"{reference} isn't on the nodes", mend)


def setup(cluster: Cluster, manifests: Path | None, dashboard: bool, timeout: int) -> None:
    """Prepare a cluster for searches, step by step; what is there already stays. Raises NasError."""
    if cluster.target is Target.MICROK8S:
        _addons([*ADDONS, *(["dashboard"] if dashboard else [])], timeout)
    there = cluster.objects("Deployment", namespace=KATIB_NAMESPACE)
    if cluster.get("CustomResourceDefinition", "experiments.kubeflow.org") and there and manifests is None:
        print("katib: it is there already")
    else:
        kind = "-k" if manifests is None or (manifests / "kustomization.yaml").exists() else "-f"
        source = str(manifests) if manifests else f"{KATIB_URL}{KATIB}"
        print(f"katib: installing {source}", flush=True)
        try:
            cluster.call("apply", kind, source, namespace="")
        except ClusterError as error:
            hint = "" if manifests else "\nwithout internet: --manifests DIR, that folder of Katib's repository"
            raise NasError(f"Katib can't be installed: {error}{hint}") from error
    if cluster.get("Namespace", cluster.namespace) is None:
        cluster.call("create", "namespace", cluster.namespace, namespace="")
    cluster.call("label", "namespace", cluster.namespace, "=".join(LABEL), "--overwrite", namespace="")
    print(f"namespace: {cluster.namespace} is there and labelled", flush=True)
    for name in KATIB_PARTS:
        print(f"katib: waiting for {name}", flush=True)
        words = ["rollout", "status", f"deployment/{name}", f"--timeout={timeout}s"]
        try:
            cluster.call(*words, namespace=KATIB_NAMESPACE)
        except ClusterError as error:
            look = " ".join([*cluster.kubectl, "-n", KATIB_NAMESPACE, "get pods"])
            raise NasError(f"{name} isn't ready: {error}; see {look}") from error
    print("the cluster is ready for searches")


def _addons(wanted: list[str], timeout: int) -> None:
    command = ["microk8s", "status", "--wait-ready", "--timeout", str(timeout)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or "microk8s is running" not in result.stdout:
        said = (result.stdout + result.stderr).strip().splitlines() or ["it says nothing"]
        raise NasError(f"MicroK8s isn't ready: {said[0]}")
    enabled = result.stdout.partition("enabled:")[2].partition("disabled:")[0]
    for addon in wanted:
        if re.search(rf"^\s+{addon}\b", enabled, re.MULTILINE):
            print(f"add-on {addon}: it is enabled already", flush=True)
            continue
        print(f"add-on {addon}: enabling", flush=True)
        if subprocess.run(["microk8s", "enable", addon], check=False).returncode:
            raise NasError(f"microk8s enable {addon} failed (see above)")
