"""What a search needs of a cluster: looked at (`nas doctor`) and prepared (`nas cluster setup`)."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nas import chart, images
from nas.cluster import LIMIT, Cluster, Target, output
from nas.errors import NasError
from nas.experiment import Manifest

KATIB = "v0.19.0"
KATIB_URL = "github.com/kubeflow/katib.git/manifests/v1beta1/installs/katib-standalone?ref="
KATIB_NAMESPACE = "kubeflow"
KATIB_KINDS = ("experiments.kubeflow.org", "trials.kubeflow.org", "suggestions.kubeflow.org")
KATIB_PARTS = ("katib-controller", "katib-db-manager")  # the database is of the installation's choice
WEBHOOK = "validator.experiment.katib.kubeflow.org"
LABEL = "katib.kubeflow.org/metrics-collector-injection"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
ADDONS = ("dns", "hostpath-storage")
OLDEST = (1, 28)
LEAST_DISK = 2e9  # bytes


@dataclass(frozen=True)
class Finding:
    """What was looked at and what there is; with a `mend`, something is wrong and this command helps."""

    subject: str
    text: str
    mend: str = ""


def findings(cluster: Cluster, root: Path, wanted: list[str]) -> Iterator[Finding]:
    """Everything a search needs, in the order in which it is needed. `wanted` are the images. Changes nothing."""
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "cluster": lambda: _versions(cluster),
        "helm": lambda: iter([Finding("helm", str(chart.helm(cluster.home)))]),
        "node": lambda: _nodes(cluster),
        "Katib": lambda: _katib(cluster),
        "namespace": lambda: _namespace(cluster),
        "storage": lambda: _storage(cluster),
        "image": lambda: _images(cluster, root, wanted),
    }
    for subject, look in looks.items():
        try:
            yield from look()
        except NasError as error:
            text, _, mend = str(error).partition("\n")
            yield Finding(subject, text, mend or "see there, then call nas doctor again")
            if subject == "cluster":
                return  # it doesn't answer
    free = shutil.disk_usage(cluster.home if cluster.home.exists() else root).free
    yield Finding("disk", f"{free / 1e9:.0f} GB free here", "docker system prune" if free < LEAST_DISK else "")


def _versions(cluster: Cluster) -> Iterator[Finding]:
    versions = json.loads(cluster.call("version", "--output=json", LIMIT))
    context = cluster.call("config", "view", "--output=jsonpath={.current-context}")
    yield Finding("kubectl", f"{versions['clientVersion']['gitVersion']}, context {context or '(none)'}")
    server = versions["serverVersion"]["gitVersion"]
    old = tuple(map(int, re.findall(r"\d+", server)[:2])) < OLDEST
    yield Finding("Kubernetes", server, "upgrade the cluster to 1.28 or newer" if old else "")


def _nodes(cluster: Cluster) -> Iterator[Finding]:
    kinds = set()
    for node in cluster.objects("Node"):
        name, info = node["metadata"]["name"], node["status"]["nodeInfo"]
        kinds.add(info["architecture"])
        conditions = [f"{c['type']}={c['status']}" for c in node["status"]["conditions"]]
        # Kubernetes' own; clouds and k3s add others, some of which tell of trouble and some of none.
        wrong = [c for c in conditions if re.fullmatch("(.*Pressure|NetworkUnavailable)=True|Ready=(?!True).*", c)]
        text = ", ".join(wrong or [info["architecture"], info["kubeletVersion"]])
        yield Finding("node", f"{name}: {text}", cluster.words("describe", "node", name) if wrong else "")
    if len(kinds) > 1:
        mend = "nodeSelector: {kubernetes.io/arch: …} in the values"
        yield Finding("node", f"architectures differ ({', '.join(sorted(kinds))}): an image runs on one", mend)


def _katib(cluster: Cluster) -> Iterator[Finding]:
    setup = f"nas cluster setup {cluster.options}"
    crds = {crd["metadata"]["name"] for crd in cluster.objects("CustomResourceDefinition")}
    if unknown := [name for name in KATIB_KINDS if name not in crds]:
        yield Finding("Katib", f"the cluster doesn't know {', '.join(unknown)}", setup)
        return
    for name, part in _parts(cluster).items():
        if part is None:
            yield Finding("Katib", f"{name} isn't there", setup)
        elif not part.get("status", {}).get("readyReplicas"):
            mend = cluster.words("describe", "deployment", name, namespace=KATIB_NAMESPACE)
            yield Finding("Katib", f"{name} isn't ready", mend)
        else:
            image = part["spec"]["template"]["spec"]["containers"][0]["image"]
            yield Finding("Katib", f"{name} is ready ({image.rpartition('/')[2]})")
    hooks = [hook for one in cluster.objects("ValidatingWebhookConfiguration") for hook in one.get("webhooks", [])]
    if not any(hook["name"] == WEBHOOK and hook["clientConfig"].get("caBundle") for hook in hooks):
        mend = cluster.words("rollout", "restart", "deployment", "katib-controller", namespace=KATIB_NAMESPACE)
        yield Finding("Katib", "its webhook isn't set up: experiments would be refused", mend)


def _parts(cluster: Cluster) -> dict[str, Manifest | None]:
    """Katib's Deployments without the UI, which a search doesn't need; None for one that isn't there."""
    there = {d["metadata"]["name"]: d for d in cluster.objects("Deployment", namespace=KATIB_NAMESPACE)}
    names = {*KATIB_PARTS, *(name for name in there if name.startswith("katib-"))} - {"katib-ui"}
    return {name: there.get(name) for name in sorted(names)}


def _namespace(cluster: Cluster) -> Iterator[Finding]:
    found, name = cluster.get("Namespace", cluster.namespace), cluster.namespace
    if found is None:
        yield Finding("namespace", f"{name} isn't there", f"nas cluster setup {cluster.options}")
    elif found["metadata"].get("labels", {}).get(LABEL) != "enabled":
        mend = cluster.words("label", "namespace", name, f"{LABEL}=enabled", "--overwrite")
        yield Finding("namespace", f"{name} has no metrics-collector label: Katib refuses searches", mend)
    else:
        yield Finding("namespace", f"{name}, labelled for Katib's metrics collector")


def _storage(cluster: Cluster) -> Iterator[Finding]:
    classes = {c["metadata"]["name"]: c["metadata"].get("annotations", {}) for c in cluster.objects("StorageClass")}
    chosen = [name for name, annotations in classes.items() if annotations.get(DEFAULT_CLASS) == "true"]
    none = f"no default storage class (there: {', '.join(classes) or 'none'})"
    mend = "microk8s enable hostpath-storage" if cluster.target is Target.MICROK8S else "set storage.storageClass"
    yield Finding("storage", f"default class {chosen[0]}") if chosen else Finding("storage", none, mend)


def _images(cluster: Cluster, root: Path, wanted: list[str]) -> Iterator[Finding]:
    """Images without a registry in their name must be on the nodes."""
    held = [node["status"].get("images", []) for node in cluster.objects("Node")]
    listed = {name for node in held for image in node for name in image.get("names") or []}
    for reference in (name for name in wanted if "/" not in name):
        name, _, tag = reference.partition(":")
        there = images.full(name, tag) in listed
        try:  # kubelet tells a new image only after a while
            there = there or images.detect(cluster).has(images.full(name, tag))
        except NasError:
            if any(len(node) >= 50 for node in held):
                yield Finding("image", f"{reference}: can't be told, as a node lists 50 images at most")
                continue
        mend = f"nas images build {name} && nas images import {name} {cluster.options}"
        mend = mend if name in images.folders(root) else f"import {name}"
        yield Finding("image", f"{reference} {'is' if there else 'is not'} on the nodes", "" if there else mend)


def setup(cluster: Cluster, manifests: Path | None, dashboard: bool, timeout: int) -> None:
    """Prepare a cluster for searches, step by step; what is there already stays. Raises NasError."""
    if cluster.target is Target.MICROK8S:
        _addons([*ADDONS, *(["dashboard"] if dashboard else [])], timeout)
    if manifests is None and not any("nas cluster setup" in finding.mend for finding in _katib(cluster)):
        print("katib: it is there already")
    else:
        kind = "-k" if manifests is None or (manifests / "kustomization.yaml").exists() else "-f"
        source = str(manifests or f"{KATIB_URL}{KATIB}")
        print(f"katib: installing {source}", flush=True)
        cluster.call("apply", kind, source, namespace=KATIB_NAMESPACE)
    metadata = {"name": cluster.namespace, "labels": {LABEL: "enabled"}}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    cluster.call("apply", "-f", "-", stdin=json.dumps(namespace))
    print(f"namespace: {cluster.namespace} is there and labelled", flush=True)
    parts = [f"deployment/{name}" for name in _parts(cluster)]
    print(f"katib: waiting for {', '.join(parts)}", flush=True)
    cluster.call("rollout", "status", *parts, f"--timeout={timeout}s", namespace=KATIB_NAMESPACE)
    print("the cluster is ready for searches")


def _addons(wanted: list[str], timeout: int) -> None:
    """Enable add-ons; MicroK8s leaves those that are as they are, and says so."""
    if "microk8s is running" not in output(["microk8s", "status", "--wait-ready", "--timeout", str(timeout)]):
        raise NasError("MicroK8s isn't running: microk8s start, or microk8s inspect to see why; then call this again")
    for addon in wanted:
        print(f"add-on {addon}: enabling", flush=True)
        if subprocess.run(["microk8s", "enable", addon], check=False).returncode:
            raise NasError(f"microk8s enable {addon} failed (see above): mend that, then call nas cluster setup again")
