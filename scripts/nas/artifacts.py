"""Files on a release's claim: seen and copied through the bridge pod, checked at both ends, resumed when cut."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nas import bridge
from nas.cluster import Cluster, ClusterError, last_line, trouble
from nas.errors import NasError
from nas.progress import condition

CLAIM = "/model"
ATTEMPTS = 5  # in a row that get no further
READY = 120.0  # seconds a bridge pod has to start
LIFETIME = 3600  # seconds after which a temporary pod ends, should nobody be left to remove it


class Claim:
    """The files of a release's claim, by the pod that has them mounted."""

    def __init__(self, cluster: Cluster, pod: str) -> None:
        self.cluster, self.pod = cluster, pod

    def list(self, path: str) -> str:
        """What is below a folder: bytes, time (UTC) and path of each file. Raises NasError."""
        shown = ["-type", "f", "!", "-name", ".*", "-printf", r"%12s %TY-%Tm-%Td %TH:%TM %p\n"]
        lines = self.cluster.call("exec", self.pod, "--", "find", there(path), *shown).splitlines(keepends=True)
        return "".join(sorted(lines, key=lambda line: line[30:])).replace(f" {CLAIM}/", " ")

    def kept(self, model: str, **more: Any) -> dict[str, Any]:
        """What `bridge.kept` tells of a model. Raises NasError."""

        def ask(source: IO[bytes], target: IO[bytes], _: bridge.Told) -> Any:
            bridge.say(target, {"model": model, **more})
            return bridge.hear(source)

        return dict(self._persist("kept", CLAIM, ask))

    def copy(self, path: str, destination: Path, told: bridge.Told) -> int:
        """Copy a file or what is below a folder to `destination`, and count the files.

        What is there already isn't fetched again; a part of a file is gone on from. Raises NasError when it breaks off
        again and again; the parts stay.
        """
        return int(self._persist("send", there(path), lambda *pipes: bridge.receive(destination, *pipes), told))

    def put(self, source: Path, path: str, told: bridge.Told) -> int:
        """Copy a file, or what is below a folder, to `path` on the claim, as `copy`; the number of files."""
        return int(self._persist("receive", there(path), lambda *pipes: bridge.send(source, *pipes), told))

    def _persist(self, command: str, path: str, use: Callable[..., Any], told: bridge.Told = lambda *_: None) -> Any:
        """What `use` makes of a bridge command's pipes; once more when it breaks off, as long as that gets further.

        Raises NasError when it doesn't, or when the pod says that it can't be done.
        """
        program = ["python3", "-c", Path(bridge.__file__).read_text(), command, path]
        furthest, left, problem = 0, ATTEMPTS, ""

        def tell(done: int, total: int) -> None:
            nonlocal furthest, left
            if done > furthest:
                furthest, left = done, ATTEMPTS
            told(done, total)

        while left:
            left -= 1
            process = self.cluster.start("exec", "-i", self.pod, "--", *program, stdin=True)
            assert process.stdin
            assert process.stderr
            try:
                return use(process.stdout, process.stdin, tell)
            except bridge.Refused as error:
                raise NasError(str(error)) from error
            except (BrokenPipeError, bridge.Cut) as error:
                process.terminate()
                said = process.stderr.read().decode(errors="replace").strip()
                problem = last_line(said) if said else str(error)
            finally:
                process.kill()
                process.wait()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            wait_ready(self.cluster, self.pod)
        raise NasError(f"what goes through the bridge pod {self.pod} breaks off ({problem}): call it again to go on")


def there(path: str) -> str:
    """A path in the pod; a person may write it as the pods see it, /model/…, or relative to that. Raises NasError."""
    full = os.path.normpath(Path(CLAIM) / path)
    if full != CLAIM and not full.startswith(f"{CLAIM}/"):
        raise NasError(f"{path} is outside the claim, which is {CLAIM} in the pods: name a path below that")
    return full


@contextlib.contextmanager
def opened(cluster: Cluster, root: Path, release: str) -> Iterator[Claim]:
    """The claim through the release's bridge pod, or a temporary one from the same template. Raises NasError."""
    pod = f"{release}-bridge-0"
    bridge = cluster.get("StatefulSet", f"{release}-bridge")  # its pod may be there without it, on its way out
    if bridge and "deletionTimestamp" not in bridge["metadata"]:
        wait_ready(cluster, pod)
        yield Claim(cluster, pod)
        return
    rendered = cluster.template(release, root, "bridge/statefulset", {"enabled": True})
    pod = f"{release}-bridge-{secrets.token_hex(3)}"
    manifest = {"apiVersion": "v1", "kind": "Pod", **rendered["spec"]["template"]}
    manifest["metadata"]["name"] = pod
    ends = {"restartPolicy": "Never", "activeDeadlineSeconds": LIFETIME, "terminationGracePeriodSeconds": 0}
    cluster.call("create", "-f", "-", stdin=json.dumps({**manifest, "spec": manifest["spec"] | ends}))
    try:
        wait_ready(cluster, pod)
        yield Claim(cluster, pod)
    finally:
        cluster.call("delete", "pod", pod, "--wait=false", "--ignore-not-found")


def wait_ready(cluster: Cluster, pod: str) -> None:
    """Wait until a pod can be used. Raises NasError with what keeps it from starting."""
    deadline, why = time.monotonic() + READY, ""
    while time.monotonic() < deadline:
        try:
            found = cluster.get("Pod", pod)
            if found and condition(found, "Ready"):
                return
            why = trouble(found) or found["status"].get("phase", "") if found else "it isn't there"
        except ClusterError as error:
            why = str(error)
        time.sleep(0.5)
    raise NasError(f"the bridge pod {pod} doesn't start: {why}; see {cluster.words('describe', 'pod', pod)}")
