"""The images: built here, brought to a cluster's nodes as a stream, and compared by their ids."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelkit import files

from nas import data
from nas.cluster import Cluster, ClusterError, Target, output
from nas.errors import NasError
from nas.experiment import Manifest
from nas.view import meter

Words = list[str]
# MNIST's files go into these images, where they run without a way to fetch them.
BAKED = {"mnist-trainer": list(data.MNIST), "batch": [name for name in data.MNIST if name.startswith("t10k")]}
BUILDERS = ("docker", "podman", "buildah")
KUBERNETES = ["--namespace", "k8s.io"]  # where kubelet looks


def _kind() -> list[Words]:
    nodes = output(["docker", "ps", "--filter=label=io.x-k8s.kind.role", "--format={{.Names}}"]).split()
    return [["docker", "exec", "-i", n, "ctr", *KUBERNETES] for n in nodes if not n.endswith("-load-balancer")]


# What nodes may run on: the words of each node's ctr, or of minikube, which has commands of its own.
RUNTIMES: dict[str, Callable[[], list[Words]]] = {
    "microk8s": lambda: [["microk8s", "ctr"]],
    "containerd": lambda: [["ctr", *KUBERNETES]],
    "k3s": lambda: [["k3s", "ctr", *KUBERNETES]],
    "kind": _kind,
    "minikube": lambda: [["minikube", "image"]],
}


@dataclass(frozen=True)
class Image:
    """A built image: its full name, id (`sha256:…`) and bytes, unpacked."""

    name: str
    digest: str
    size: int


def full(name: str, tag: str = "latest", registry: str = "") -> str:
    """A name as containerd keeps it: `server` is docker.io/library/server:latest there."""
    return f"{registry or 'docker.io/library'}/{name}:{tag}"


def folders(root: Path) -> list[str]:
    """The names of all images."""
    return sorted(path.parent.name for path in (root / "images").glob("*/Dockerfile"))


def wanted(rendered: list[Manifest]) -> list[str]:
    """The images that rendered objects name, once each."""
    return list(dict.fromkeys(re.findall(r'"image": "([^"]+)"', json.dumps(rendered))))


class Builder:
    """docker, podman or buildah: the first that works. Raises NasError when none does."""

    def __init__(self) -> None:
        tried = []
        for self.tool in BUILDERS:
            try:
                output([self.tool, "images", "--quiet"])
            except ClusterError as error:
                tried.append(str(error).splitlines()[0])
            else:
                return
        hint = "install docker or podman, or start it; with images that are where they belong, --no-build"
        raise NasError(f"nothing here can build images ({'; '.join(tried)}): {hint}")

    def build(self, root: Path, name: str, tag: str, home: Path, show: bool) -> Image:
        """Build images/NAME with what it needs baked in. Raises NasError. `show`: the builder's output, as it comes."""
        if name not in folders(root):
            raise NasError(f"no image {name!r}: there are {', '.join(folders(root))}")
        command = [self.tool, "build", "--tag", full(name, tag), "--file", str(root / "images" / name / "Dockerfile")]
        if self.tool != "docker":  # an id that stays the same in an archive, and what docker does by itself
            command += ["--format", "docker", "--layers"]
        for argument in os.environ.get("NAS_BUILD_ARGS", "").split():
            command += ["--build-arg", argument]
        for file in BAKED.get(name, []):
            baked = root / "images" / name / "data" / "mnist" / f"{file}.gz"
            if not baked.exists():
                source = data.ensure("mnist", home / "data") / baked.name
                baked.parent.mkdir(exist_ok=True)
                files.write(baked, source.read_bytes())
        command.append(str(root / "images"))
        result = subprocess.run(command, capture_output=not show, text=True, errors="replace", check=False)
        if result.returncode:
            said = "above" if show else "\n".join((result.stdout + result.stderr).strip().splitlines()[-10:])
            raise NasError(f"image {name} could not be built by {self.tool}: {said}")
        return self.image(full(name, tag))

    def image(self, name: str) -> Image:
        """An image held here. Raises NasError when there is none of that name."""
        found = None
        with contextlib.suppress(ClusterError):
            shown = output([self.tool, "images", "--no-trunc", "--format", "{{.ID}} {{.Size}}", name])
            found = re.match(r"(?:sha256:)?(\w+)\s+([\d.]+) ?(k|M|G|)B", shown)
        if not found:
            raise NasError(f"{self.tool} has no image {name}: nas images build {name.split('/')[-1].split(':')[0]}")
        scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[3]]
        return Image(name, f"sha256:{found[1]}", int(float(found[2]) * scale))

    def save(self, name: str) -> "subprocess.Popen[bytes]":
        """A process that writes the image as an archive to its stdout."""
        command = [self.tool, "save", name]
        if self.tool == "buildah":
            command = ["buildah", "push", "--quiet", name, f"docker-archive:/dev/stdout:{name}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def push(self, name: str, target: str) -> None:
        """Push an image under another name; what the registry has isn't sent again. Raises NasError."""
        for words in (["tag", name, target], ["push", target]):
            if subprocess.run([self.tool, *words], check=False).returncode:
                raise NasError(f"{self.tool} {' '.join(words)} failed (see above): {self.tool} login may be needed")


class Runtime:
    """The images of a cluster's nodes. Raises NasError when there is no runtime of that name, or no way to it."""

    def __init__(self, name: str) -> None:
        if name not in RUNTIMES:
            raise NasError(f"no runtime {name!r}: there are {', '.join(RUNTIMES)}; --push HOST/PATH is for a registry")
        self.name, self.nodes = name, RUNTIMES[name]()

    def ids(self, name: str, node: Words) -> set[str]:
        """The ids an image may be known by on a node: its manifest's and its configuration's. Empty: not there."""
        if node[0] == "minikube":
            listed = json.loads(output([*node, "ls", "--format", "json"]) or "[]")
            return {f"sha256:{one['id'].removeprefix('sha256:')}" for one in listed if name in one["repoTags"]}
        unread = re.findall(r"sha256:\w+", output([*node, "images", "list", f"name=={name}"]))
        found = set(unread)
        while unread:
            with contextlib.suppress(ClusterError):  # an index names platforms that aren't here
                content = json.loads(output([*node, "content", "get", unread.pop()]))
                unread += [entry["digest"] for entry in content.get("manifests", [])]
                found |= {*unread, content.get("config", {}).get("digest", "")}
        return found

    def has(self, name: str) -> bool:
        """Whether all nodes have an image of this name."""
        return all(self.ids(name, node) for node in self.nodes)

    def bring(self, builder: Builder, image: Image) -> bool:
        """Import an image into every node that lacks it, and say so; whether there was one. Raises NasError."""
        lacking = [node for node in self.nodes if image.digest not in self.ids(image.name, node)]
        started = time.monotonic()
        with meter(f"importing {image.name}") as told:
            for node in lacking:
                self._import(builder, image, node, told)
        took = f"imported in {time.monotonic() - started:.1f} s" if lacking else "there already"
        print(f"image {image.name} {image.digest[7:19]}, {image.size / 1e6:.0f} MB, {self.name}: {took}", flush=True)
        return bool(lacking)

    def _import(self, builder: Builder, image: Image, node: Words, told: Callable[[int, int], object]) -> None:
        """Stream an image into a node, and look whether it is that one there."""
        command = [*node, "load", "-"] if node[0] == "minikube" else [*node, "images", "import", "-"]
        pipe, sent = subprocess.PIPE, 0
        source = builder.save(image.name)
        target = subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe)
        assert source.stdout
        assert target.stdin
        with contextlib.suppress(BrokenPipeError), target.stdin, source.stdout:
            try:
                while part := source.stdout.read(1 << 20):
                    target.stdin.write(part)
                    sent += len(part)
                    told(sent, image.size)
            except (KeyboardInterrupt, SystemExit):
                target.kill()  # before it sees an end that isn't one
                raise
        for process, words in ((target, command), (source, [builder.tool, "save"])):
            said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            if process.wait():
                raise NasError(f"{' '.join(words)} failed: {said or f'exit status {process.returncode}'}")
        if image.digest not in self.ids(image.name, node):
            raise NasError(f"{self.name} has another image as {image.name} after the import: import it again")


def detect(cluster: Cluster) -> Runtime:
    """What a cluster's nodes run on, by what they say of themselves. Raises NasError."""
    if cluster.target is Target.MICROK8S:
        return Runtime("microk8s")
    nodes = cluster.objects("Node")
    one = nodes[0]
    if "minikube.k8s.io/name" in one["metadata"].get("labels", {}):
        return Runtime("minikube")
    if one["spec"].get("providerID", "").startswith("kind://"):
        return Runtime("kind")
    if len(nodes) == 1 and "+k3s" in one["status"]["nodeInfo"]["kubeletVersion"] and shutil.which("k3s"):
        return Runtime("k3s")
    if len(nodes) == 1 and one["metadata"]["name"] == platform.node() and shutil.which("ctr"):
        return Runtime("containerd")
    raise NasError(
        "the cluster's nodes are other machines, so images come to them by a registry: "
        "nas images import --push HOST/PATH, and global.image.registry in the values; --no-build when they are there"
    )
