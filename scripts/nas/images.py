"""The images: built here, brought to a cluster's nodes as a stream, and compared by their ids."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nas import data
from nas.cluster import Cluster, Target
from nas.errors import NasError
from nas.experiment import Manifest

Told = Callable[[int], object]
# MNIST's files go into these images, where they run without a way to fetch them.
BAKED = {"mnist-trainer": list(data.MNIST), "batch": [name for name in data.MNIST if name.startswith("t10k")]}
HOSTS = {  # what a node's runtime is called, and the words of its ctr
    "microk8s": ["microk8s", "ctr"],
    "containerd": ["ctr", "--namespace", "k8s.io"],
    "k3s": ["k3s", "ctr", "--namespace", "k8s.io"],
}
RUNTIMES = (*HOSTS, "kind", "minikube")


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


class Builder:
    """docker, podman or buildah: the one asked for, else the first that works. Raises NasError when none does."""

    def __init__(self, name: str = "") -> None:
        tried = []
        for tool in [name] if name else ["docker", "podman", "buildah"]:
            if not shutil.which(tool):
                tried.append(f"{tool} is not on PATH")
                continue
            result = subprocess.run([tool, "info"], capture_output=True, text=True, check=False)
            if result.returncode == 0 and "ERROR" not in result.stderr:  # docker's status is 0 without its daemon
                self.tool = tool
                return
            tried.append(f"{tool}: {(result.stderr.strip() or 'it does not work').splitlines()[-1]}")
        raise NasError(
            f"nothing here can build or hold images ({'; '.join(tried)}): install docker or podman, or start it"
        )

    def build(self, root: Path, name: str, tag: str, home: Path, arguments: list[str], show: bool) -> Image:
        """Build images/NAME with what it needs baked in. Raises NasError. `show`: the builder's output, as it comes."""
        if name not in folders(root):
            raise NasError(f"no image {name!r}: there are {', '.join(folders(root))}")
        target = full(name, tag)
        command = [self.tool, "build", "--tag", target, "--file", str(root / "images" / name / "Dockerfile")]
        if self.tool != "docker":  # an id that stays the same in an archive, and what docker does by itself
            command += ["--format", "docker", "--layers"]
        for argument in [*os.environ.get("NAS_BUILD_ARGS", "").split(), *arguments]:
            command += ["--build-arg", argument]
        with _baked(root, name, home):
            command.append(str(root / "images"))
            result = subprocess.run(command, capture_output=not show, text=True, errors="replace", check=False)
        if result.returncode:
            said = "above" if show else "\n".join((result.stdout + result.stderr).strip().splitlines()[-10:])
            raise NasError(f"image {name} could not be built: {said}")
        built = self.image(target)
        if built is None:
            raise NasError(f"{self.tool} built {target} but doesn't show it: see {self.tool} images")
        return built

    def image(self, name: str) -> Image | None:
        """An image held here, None when there is none of that name."""
        if self.tool == "buildah":
            command = ["buildah", "images", "--no-trunc", "--format", "{{.ID}} {{.Size}}", name]
        else:
            command = [self.tool, "image", "inspect", "--format", "{{.Id}} {{.Size}}", name]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not result.stdout.strip():
            return None
        digest, size, *unit = result.stdout.split()
        scale = {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit[0]] if unit and unit[0] in ("KB", "MB", "GB") else 1
        return Image(name, f"sha256:{digest.removeprefix('sha256:')}", int(float(size) * scale))

    def save(self, name: str) -> "subprocess.Popen[bytes]":
        """A process that writes the image as an archive to its stdout."""
        command = [self.tool, "save", name]
        if self.tool == "buildah":
            command = ["buildah", "push", "--quiet", name, f"docker-archive:/dev/stdout:{name}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def packed(self, name: str) -> int:
        """An image's bytes as a registry would keep them."""
        process, packer, total = self.save(name), zlib.compressobj(6), 0
        assert process.stdout
        while part := process.stdout.read(1 << 20):
            total += len(packer.compress(part))
        return total + len(packer.flush())

    def push(self, name: str, target: str) -> None:
        """Push an image under another name; what the registry has isn't sent again. Raises NasError."""
        for words in (["tag", name, target], ["push", target]):
            if subprocess.run([self.tool, *words], check=False).returncode:
                raise NasError(f"{self.tool} {' '.join(words)} failed (see above): {self.tool} login may be needed")


class Runtime:
    """The images of a cluster's nodes."""

    def __init__(self, name: str, nodes: list[list[str]]) -> None:
        self.name, self.nodes = name, nodes  # the words of each node's ctr; none for minikube

    def ids(self, name: str, node: list[str]) -> set[str]:
        """The ids an image may be known by on a node: its manifest's and its configuration's. Empty: not there."""
        if not node:
            listed = json.loads(_call(["minikube", "image", "ls", "--format", "json"]) or "[]")
            return {f"sha256:{one['id'].removeprefix('sha256:')}" for one in listed if name in one["repoTags"]}
        rows = _call([*node, "images", "list", f"name=={name}"]).splitlines()[1:]
        found = {word for row in rows for word in row.split() if word.startswith("sha256:")}
        for digest in list(found):
            manifest = json.loads(_call([*node, "content", "get", digest]))
            for entry in [manifest["config"]] if "config" in manifest else manifest.get("manifests", []):
                found.add(entry["digest"])
                if "config" not in manifest:
                    with contextlib.suppress(NasError):  # an index names platforms that aren't here
                        found.add(json.loads(_call([*node, "content", "get", entry["digest"]]))["config"]["digest"])
        return found

    def bring(self, builder: Builder, image: Image, told: Told) -> bool:
        """Import an image into every node that lacks it, as a stream; False when all have it. Raises NasError."""
        lacking = [node for node in self.nodes if image.digest not in self.ids(image.name, node)]
        for node in lacking:
            command = [*node, "images", "import", "-"] if node else ["minikube", "image", "load", "-"]
            source = builder.save(image.name)
            target = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert source.stdout
            assert target.stdin
            try:
                with contextlib.suppress(BrokenPipeError):
                    while part := source.stdout.read(1 << 20):
                        target.stdin.write(part)
                        told(len(part))
                source.stdout.close()
                with contextlib.suppress(BrokenPipeError):
                    target.stdin.close()
            except BaseException:
                source.kill()
                target.kill()  # before it sees an end that isn't one
                raise
            for process, words in ((target, command), (source, [builder.tool, "save"])):
                assert process.stderr
                said = process.stderr.read().decode(errors="replace").strip()
                if process.wait():
                    raise NasError(f"{' '.join(words)} failed: {said or f'exit status {process.returncode}'}")
            if image.digest not in self.ids(image.name, node):
                raise NasError(
                    f"{image.name} was imported into {self.name}, but another image is there: import it again"
                )
        return bool(lacking)


def runtime(name: str, cluster: Cluster | None) -> Runtime:
    """The runtime of that name; without one, that of the cluster's nodes. Raises NasError when it can't be reached."""
    name = name or (_detect(cluster) if cluster else "")
    if name == "kind":
        listed = _call(["docker", "ps", "--filter", "label=io.x-k8s.kind.cluster", "--format", "{{.Names}}"]).split()
        nodes = [n for n in listed if not n.endswith("-external-load-balancer")]
        return Runtime(name, [["docker", "exec", "-i", n, "ctr", "--namespace", "k8s.io"] for n in nodes])
    if name == "minikube":
        return Runtime(name, [[]])
    if name not in HOSTS:
        raise NasError(
            f"no runtime {name!r}: there are {', '.join(RUNTIMES)}, or push to a registry with --push HOST/PATH"
        )
    return Runtime(name, [HOSTS[name]])


def _detect(cluster: Cluster) -> str:
    """What a cluster's nodes run on, by what they say of themselves."""
    if cluster.target is Target.MICROK8S:
        return "microk8s"
    nodes = cluster.objects("Node")
    labels = nodes[0]["metadata"].get("labels", {})
    if "minikube.k8s.io/name" in labels:
        return "minikube"
    if nodes[0]["spec"].get("providerID", "").startswith("kind://"):
        return "kind"
    if len(nodes) == 1 and "+k3s" in nodes[0]["status"]["nodeInfo"]["kubeletVersion"] and shutil.which("k3s"):
        return "k3s"
    if len(nodes) == 1 and (shutil.which("ctr") and nodes[0]["metadata"]["name"] == platform.node()):
        return "containerd"
    raise NasError(
        "the cluster's nodes are other machines, so images come to them by a registry: "
        "nas images import --push HOST/PATH, and global.image.registry in the values; --no-build when they are there"
    )


def _call(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NasError(f"{command[0]} is not on PATH") from error
    if result.returncode:
        said = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        hint = ": it may need root, so call nas with sudo" if "permission denied" in said.lower() else ""
        raise NasError(f"{' '.join(command)}: {said.splitlines()[-1]}{hint}")
    return result.stdout


@contextlib.contextmanager
def _baked(root: Path, name: str, home: Path) -> Iterator[None]:
    """MNIST's files in the build context while an image that wants them is built."""
    folder, copied = root / "images" / name / "data" / "mnist", []
    if name in BAKED:
        source = data.ensure("mnist", home / "data")
        folder.mkdir(exist_ok=True)
        for file in BAKED[name]:
            if not (target := folder / f"{file}.gz").exists():  # else a user's own
                shutil.copy2(source / target.name, target)
                copied.append(target)
    try:
        yield
    finally:
        for target in copied:
            target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or never made
            folder.rmdir()


def wanted(rendered: list[Manifest]) -> list[str]:
    """The images that rendered objects name, once each."""
    return list(dict.fromkeys(re.findall(r'"image": "([^"]+)"', json.dumps(rendered))))
