"""Files on a release's claim: seen and copied through the bridge pod, checked at both ends, resumed when cut."""

import contextlib
import json
import os
import secrets
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nas import bridge
from nas.cluster import Cluster, ClusterError, trouble
from nas.errors import NasError

CLAIM = Path("/model")
ATTEMPTS = 5  # in a row that get no further
READY = 120.0  # seconds a bridge pod has to start
LIFETIME = 3600  # seconds after which a temporary pod ends, should nobody be left to remove it
Told = Callable[[int], object]


class Claim:
    """The files of a release's claim, by the pod that has them mounted."""

    def __init__(self, cluster: Cluster, pod: str) -> None:
        self.cluster, self.pod = cluster, pod

    def command(self, name: str) -> list[str]:
        """kubectl's words to run one of the bridge's commands in the pod."""
        source = Path(bridge.__file__).read_text()
        return ["exec", "-i", self.pod, "--", "python3", "-c", source, name, str(CLAIM)]

    def ask(self, name: str, request: Any) -> Any:
        """A bridge command's answer; asked again while the pod restarts. Raises NasError."""
        problem: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                return json.loads(self._exchange(name, request, _answer))
            except (ClusterError, ValueError) as error:
                problem = error
                wait_ready(self.cluster, self.pod)
        raise NasError(f"the bridge pod {self.pod} doesn't answer: {problem}")

    def copy(self, source: str, destination: Path, told: Told, begin: Told) -> int:
        """Copy a file or what is below a folder to `destination`, and count the files.

        What is there already isn't fetched again; a part of a file is gone on from. `begin` gets the bytes in all,
        `told` those of each step. Raises NasError when it breaks off again and again; the parts stay.
        """
        base = there(source)
        files: list[File] = []

        def look() -> None:
            listed = self.ask("list", {"path": base, "digests": True})
            files[:] = [File(e["path"], destination / os.path.relpath(e["path"], base), *_state(e)) for e in listed]

        def fetch(missing: list[tuple[File, int]]) -> None:
            def receive(process: "subprocess.Popen[bytes]") -> None:
                assert process.stdout
                for file, start in missing:
                    bridge.receive(process.stdout, file.here, start, file.size, file.sha256, told)

            try:
                self._exchange("read", [[file.there, start, file.size] for file, start in missing], receive)
            except bridge.Changed:
                look()  # a running trial writes to it

        look()
        begin(sum(file.size for file in files))
        self._persist(files, lambda: [bridge.offset(f.here, f.size, f.sha256) for f in files], fetch)
        return len(files)

    def put(self, source: Path, target: str, told: Told, begin: Told) -> int:
        """Copy a file, or what is below a folder, to `target` on the claim, as `copy`; the number of files."""
        folder, target = source if source.is_dir() else source.parent, there(target)
        listed = bridge.listing(folder, source, digests=True)
        files = [
            File(str(Path(target, e["path"])) if source.is_dir() else target, folder / e["path"], *_state(e))
            for e in listed
        ]

        def send(missing: list[tuple[File, int]]) -> None:
            def write(process: "subprocess.Popen[bytes]") -> None:
                assert process.stdin
                assert process.stdout
                for file, start in missing:
                    with file.here.open("rb") as source:
                        source.seek(start)
                        while data := source.read(bridge.CHUNK):
                            if select.select([process.stdout], [], [], 0)[0]:
                                return  # the pod wants no more, and says why
                            process.stdin.write(data)
                            told(len(data))

            self._exchange("write", [[f.there, start, f.size, f.sha256] for f, start in missing], write)

        begin(sum(file.size for file in files))
        request = [[f.there, f.size, f.sha256] for f in files]
        self._persist(files, lambda: self.ask("offsets", request), send)
        return len(files)

    def _persist(
        self,
        files: "list[File]",
        offsets: Callable[[], list[int]],
        transfer: Callable[[list[tuple["File", int]]], None],
    ) -> None:
        """Transfer what is missing until nothing is; give up when nothing more comes."""
        reached, left, problem = -1, ATTEMPTS, "the files change while they are copied"
        while True:
            starts = list(zip(files, offsets(), strict=True))
            missing = [(file, start) for file, start in starts if start != bridge.WHOLE]
            if not missing:
                return
            come = sum(file.size if start == bridge.WHOLE else start for file, start in starts)
            left = ATTEMPTS if come > reached else left - 1
            reached = max(reached, come)
            if not left:
                raise NasError(f"the copy through {self.pod} breaks off ({problem}): call it again to go on")
            try:
                transfer(missing)
            except ClusterError as error:
                problem = str(error)
                wait_ready(self.cluster, self.pod)

    def _exchange(self, name: str, request: Any, use: "Callable[[subprocess.Popen[bytes]], Any]") -> Any:
        """Run a command in the pod, send it the request, and let `use` read or write the rest.

        Raises ClusterError when it broke off, NasError when the pod says that it can't be done, Changed.
        """
        process = self.cluster.start(*self.command(name), stdin=True)
        assert process.stdin
        assert process.stderr
        cut, result = False, None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            result = use(process)
        except (BrokenPipeError, bridge.Cut):
            cut = True
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            errors = process.stderr.read().decode(errors="replace").splitlines()
            process.wait()
        said = [line for line in errors if "terminated with exit code" not in line]
        if process.returncode == bridge.REFUSED:
            raise NasError("\n".join(said))
        if process.returncode or cut:
            raise ClusterError(said[-1] if said else f"kubectl exec: exit status {process.returncode}")
        return result


@dataclass(frozen=True)
class File:
    """A file to copy: its name on the claim, its path here, its size in bytes and checksum."""

    there: str
    here: Path
    size: int
    sha256: str


def there(path: str) -> str:
    """A path on the claim, relative to its top; a person may write it as the pods see it: /model/…"""
    return os.path.relpath(path, CLAIM) if path.startswith("/") else os.path.normpath(path)


def _state(entry: dict[str, Any]) -> tuple[int, str]:
    return entry["size"], entry["sha256"]


def _answer(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout
    return process.stdout.read()


@contextlib.contextmanager
def opened(cluster: Cluster, root: Path, release: str) -> Iterator[Claim]:
    """The claim through the release's bridge pod, or a temporary one from the same template. Raises NasError."""
    pod = f"{release}-bridge-0"
    bridge = cluster.get("StatefulSet", f"{release}-bridge")  # its pod may be there without it, on its way out
    if bridge and "deletionTimestamp" not in bridge["metadata"]:
        wait_ready(cluster, pod)
        yield Claim(cluster, pod)
        return
    template = ["--show-only", "charts/bridge/templates/statefulset.yaml", "--set", "bridge.enabled=true"]
    values = json.dumps(cluster.values(release))
    chart = str(root / "charts" / "nas")
    rendered = yaml.safe_load(cluster.helm("template", release, chart, "--values", "-", *template, stdin=values))
    pod = f"{release}-bridge-{secrets.token_hex(3)}"
    manifest = {"apiVersion": "v1", "kind": "Pod", **rendered["spec"]["template"]}
    manifest["metadata"]["name"] = pod
    manifest["spec"] |= {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFETIME,
        "terminationGracePeriodSeconds": 0,
    }
    cluster.call("create", "-f", "-", stdin=json.dumps(manifest))
    try:
        wait_ready(cluster, pod)
        yield Claim(cluster, pod)
    finally:
        cluster.call("delete", "pod", pod, "--wait=false", "--ignore-not-found")


def wait_ready(cluster: Cluster, pod: str) -> None:
    """Wait until a pod can be used. Raises NasError with what keeps it from starting."""
    deadline, why = time.monotonic() + READY, "it isn't there"
    while time.monotonic() < deadline:
        with contextlib.suppress(ClusterError):
            found = cluster.get("Pod", pod)
            if found and any(
                c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", [])
            ):
                return
            why = (trouble(found) or found["status"].get("phase", "")) if found else "it isn't there"
        time.sleep(0.5)
    raise NasError(f"the bridge pod {pod} doesn't start: {why}; see {cluster.words('describe', 'pod', pod)}")
