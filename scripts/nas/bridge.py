"""Files below a folder, at both ends of a copy: imported here, and sent to a pod as `python3 -c SOURCE COMMAND ROOT`.

In the pod, COMMAND takes a JSON line on stdin: `list` what is below a path, `read` files from offsets on (their bytes
come on stdout, one after the other), tell the `offsets` that files can go on from, `write` files whose bytes follow on
stdin (an answer means: no more), and tell what is `kept` of a model. Standard library only (`kept` excepted), so that
any image with Python does.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

REFUSED = 3  # exit status: stderr says why, and trying again won't help
CHUNK = 1 << 20
WHOLE = -1  # an offset: nothing is missing
_OURS = (".lock", ".new-")


class Cut(Exception):
    """The other end stopped in the middle."""


class Changed(Exception):
    """What came isn't what was announced: the file was written to meanwhile."""


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(root: Path, path: Path, digests: bool) -> list[dict[str, Any]]:
    """The file `path`, or all files below it: path (relative to `root`), size, modified (s), and sha256 if asked."""
    found = []
    inside = root.resolve()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        # A running trial replaces and removes files meanwhile.
        try:
            ours = file.name.endswith(".part") or any(p.startswith(_OURS) for p in file.relative_to(root).parts)
            if ours or not file.is_file() or not file.resolve().is_relative_to(inside):
                continue
            state = file.stat()
            entry = {"path": str(file.relative_to(root)), "size": state.st_size, "modified": state.st_mtime}
            found.append(entry | {"sha256": digest(file)} if digests else entry)
        except FileNotFoundError:
            continue
    if not found and not path.exists():
        raise OSError(errno.ENOENT, "no such file or folder", str(path))
    return found


def part(path: Path, sha256: str) -> Path:
    """Where a file's bytes are kept until all have come."""
    return path.with_name(f".{path.name}.{sha256[:12]}.part")


def offset(path: Path, size: int, sha256: str) -> int:
    """How many bytes are here already; WHOLE when the file is."""
    if path.is_file() and path.stat().st_size == size and digest(path) == sha256:
        return WHOLE
    partial = part(path, sha256)
    return min(size, partial.stat().st_size) if partial.exists() else 0


def receive(
    source: IO[bytes], path: Path, start: int, size: int, sha256: str, told: Callable[[int], object] = lambda _: None
) -> None:
    """Take a file's bytes from `start` on, compare its checksum, and give it its name.

    Raises Cut (what came is kept), Changed, OSError (nothing is kept on a full disk).
    """
    partial = part(path, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("ab", buffering=0) as file:
            file.truncate(start)
            while start < size:
                data = source.read(min(CHUNK, size - start))
                if not data:
                    raise Cut
                while data:
                    written = file.write(data)
                    data, start = data[written:], start + written
                    told(written)
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if digest(partial) != sha256:
        partial.unlink()
        raise Changed
    partial.replace(path)


def reasons(home: Any, experiment: str) -> dict[str, str]:
    """Why each trial of an experiment was promoted or not, by the trial's name, from the history of a Store."""
    decided = [event for event in home.history() if event.trial and event.trial.startswith(f"{experiment}/")]
    return {event.trial.partition("/")[2]: event.reason for event in decided}


def kept(root: Path, model: str, experiment: str = "", gate: dict[str, Any] | None = None) -> dict[str, Any]:
    """The current model's manifest and place, and each trial's epochs; with a `gate`, killed trials' models first."""
    import msgspec
    from modelkit import store

    home = store.Store(root, model)
    if gate:
        home.adopt(store.Gate(**gate))
    current = home.current()
    trials = (root / model / "trials").glob(f"{experiment}/*/metrics.jsonl") if experiment else []
    return {
        "manifest": msgspec.to_builtins(home.load().manifest) if current else None,
        "place": str(home.version(current)) if current else "",
        "reasons": reasons(home, experiment),
        "epochs": {path.parent.name: path.read_bytes().count(b"\n") for path in trials},
    }


def main(command: str, root: Path) -> int:
    os.umask(0o002)
    request = json.loads(sys.stdin.buffer.readline())
    out = sys.stdout.buffer
    try:
        if command == "list":
            print(json.dumps(listing(root, _below(root, request["path"]), request["digests"])))
        elif command == "read":
            for name, start, size in request:
                with _below(root, name).open("rb") as file:
                    file.seek(start)
                    while start < size and (data := file.read(min(CHUNK, size - start))):
                        out.write(data)
                        start += len(data)
                if start < size:
                    break
            out.flush()
        elif command == "offsets":
            print(json.dumps([offset(_below(root, name), size, sha256) for name, size, sha256 in request]))
        elif command == "write":
            for name, start, size, sha256 in request:
                receive(sys.stdin.buffer, _below(root, name), start, size, sha256)
        elif command == "kept":
            print(json.dumps(kept(root, **request)))
    except (Cut, Changed):
        return _stop(command, 1)
    except OSError as error:
        what = "no space left on the claim" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        print(f"{error.filename or root}: {what}", file=sys.stderr)
        return _stop(command, REFUSED)
    return 0


def _stop(command: str, status: int) -> int:
    """Ask the other end to send no more, and wait until it doesn't: kubectl hangs when what it sends isn't read."""
    if command == "write":
        print("stop", flush=True)
        while sys.stdin.buffer.read(CHUNK):
            pass
    return status


def _below(root: Path, name: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise OSError(errno.EACCES, "it is outside the claim", str(path))
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
