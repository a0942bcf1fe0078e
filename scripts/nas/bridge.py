"""Both ends of a copy: imported here, and sent to a pod as `python3 -c SOURCE COMMAND PATH`.

They speak in lines of JSON: `send` tells its files and their checksums, `receive` answers from where each is missing,
the bytes of those follow, and `receive` ends with the names of the files that came wrong. An object with `error` says
that trying again won't help. `kept` tells what there is of a model. Standard library only (`kept` excepted), so that
any image with Python does.
"""

import errno
import hashlib
import json
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20
WHOLE = -1  # an offset: nothing is missing
_PASSING = re.compile(r"\.lock|\.new-.*|.*\.part|\..+\.[a-z0-9_]{8}")  # names of files that are being written
File = dict[str, Any]  # path, size in bytes, sha256
Told = Callable[[int, int], object]  # takes the bytes that are there, and those in all
Parts = Callable[[IO[bytes], int], Iterator[bytes]]  # of a stream, so many bytes


class Cut(Exception):
    """It broke off, or a file was written to meanwhile: trying again goes on from there."""


class Refused(Exception):
    """The other end says that it can't be done."""


def say(target: IO[bytes], message: Any) -> None:
    target.write(json.dumps(message).encode() + b"\n")
    target.flush()


def hear(source: IO[bytes]) -> Any:
    """The other end's next line. Raises Cut, Refused."""
    try:
        message = json.loads(source.readline())
    except ValueError as error:
        raise Cut("the other end stopped") from error
    if isinstance(message, dict) and "error" in message:
        raise Refused(message["error"])
    return message


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(base: Path) -> list[File]:
    """The file `base` (as `.`), or all files below it: path, size in bytes, sha256."""
    found: list[File] = []
    for file in sorted(base.rglob("*")) if base.is_dir() else [base]:
        path = file.relative_to(base)
        if any(map(_PASSING.fullmatch, path.parts)):
            continue
        try:
            if file.is_file() and file.resolve().is_relative_to(base.resolve()):
                found.append({"path": str(path), "size": file.stat().st_size, "sha256": digest(file)})
        except FileNotFoundError:  # a running trial replaces and removes files meanwhile
            continue
    if not found and not base.exists():
        raise OSError(errno.ENOENT, "no such file or folder (nas artifacts list shows those there are)", str(base))
    return found


def send(base: Path, source: IO[bytes], target: IO[bytes], told: Told) -> int:
    """Send a file, or all files below a folder, as far as the other end lacks them; how many there are.

    Raises Cut, Refused, OSError.
    """
    files = listing(base)
    say(target, files)
    for file, start, parts in _lacking(files, hear(source), told):
        try:
            data = (base / file["path"]).open("rb")
        except FileNotFoundError as error:
            raise Cut(f"{file['path']} was removed meanwhile") from error
        with data:
            data.seek(start)
            for part in parts(data, file["size"] - start):
                if select.select([source], [], [], 0)[0]:
                    hear(source)  # it wants no more, and says why
                target.write(part)
    target.flush()
    return _whole(files, hear(source))


def receive(base: Path, source: IO[bytes], target: IO[bytes], told: Told) -> int:
    """Take what `send` sends: each file gets its name when all of it has come and its checksum is right.

    Raises Cut (what came is kept), Refused, OSError (nothing is kept of a file on a full disk).
    """
    files, wrong = hear(source), []
    starts = [_missing(base, file) for file in files]
    say(target, starts)
    for file, start, parts in _lacking(files, starts, told):
        path, partial = base / file["path"], _part(base, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("ab") as into:
                into.truncate(start)
                for data in parts(source, file["size"] - start):
                    into.write(data)
                into.flush()
                os.fsync(into.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        if digest(partial) == file["sha256"]:
            partial.replace(path)
        else:
            partial.unlink()
            wrong.append(file["path"])
    say(target, wrong)
    return _whole(files, wrong)


def _part(base: Path, file: File) -> Path:
    """Where a file's bytes are kept until all have come."""
    path = base / str(file["path"])
    return path.with_name(f".{path.name}.{file['sha256'][:12]}.part")


def _missing(base: Path, file: File) -> int:
    """How many bytes of a file are here already; WHOLE when it is."""
    path, partial = base / file["path"], _part(base, file)
    if ".." in Path(file["path"]).parts or Path(file["path"]).is_absolute():
        raise Refused(f"{file['path']} is outside of what was asked for")
    if path.is_file() and path.stat().st_size == file["size"] and digest(path) == file["sha256"]:
        return WHOLE
    return min(int(file["size"]), partial.stat().st_size) if partial.exists() else 0


def _lacking(files: list[File], starts: list[int], told: Told) -> Iterator[tuple[File, int, Parts]]:
    """Each file that isn't whole, from where it is missing, and a function that reads its bytes and tells of them."""
    total = sum(file["size"] for file in files)
    done = sum(file["size"] if start == WHOLE else start for file, start in zip(files, starts, strict=True))

    def parts(source: IO[bytes], left: int) -> Iterator[bytes]:
        nonlocal done
        while left:
            part = source.read(min(CHUNK, left))
            if not part:
                raise Cut("the other end stopped, or a file became shorter")
            yield part
            left, done = left - len(part), done + len(part)
            told(done, total)

    told(done, total)
    for file, start in zip(files, starts, strict=True):
        if start != WHOLE:
            yield file, start, parts


def _whole(files: list[File], wrong: list[str]) -> int:
    if wrong:
        raise Cut(f"{wrong[0]} changed while it was copied")
    return len(files)


def reasons(home: Any, experiment: str) -> dict[str, str]:
    """Why each trial of an experiment was promoted or not, by the trial's name, from the history of a Store."""
    decided = [event for event in home.history() if event.trial and event.trial.startswith(f"{experiment}/")]
    return {event.trial.partition("/")[2]: event.reason for event in decided}


def kept(root: Path, model: str, experiment: str = "", adopt: bool = False) -> dict[str, Any]:
    """The current model's manifest and place, and each trial's epochs; with `adopt`, killed trials' models first."""
    import msgspec
    from modelkit import store

    home = store.Store(root, model)
    if adopt:
        home.adopt()
    current = home.current()
    trials = (root / model / "trials").glob(f"{experiment}/*/metrics.jsonl") if experiment else []
    return {
        "manifest": msgspec.to_builtins(home.find().manifest) if current else None,
        "place": str(home.version(current)) if current else "",
        "reasons": reasons(home, experiment),
        "epochs": {path.parent.name: path.read_bytes().count(b"\n") for path in trials},
    }


def main(command: str, path: Path) -> None:
    os.umask(0o002)  # the other pods write there too
    source, target = sys.stdin.buffer, sys.stdout.buffer
    try:
        if command == "kept":
            say(target, kept(path, **hear(source)))
        else:
            {"send": send, "receive": receive}[command](path, source, target, lambda *_: None)
    except Cut as error:
        sys.exit(str(error))
    except OSError as error:
        what = "no space left on the claim" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        say(target, {"error": f"{error.filename or path}: {what}"})
        while source.read(CHUNK):  # kubectl hangs when what it sends isn't read
            pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
