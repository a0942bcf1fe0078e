"""Files that are whole or not there: what the artifact and the store are written with."""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

_LOCKLESS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class LockError(Exception):
    """A lock that can't be had: held by another process, or the file system has none."""


def write(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace `path` by `data`: temporary file, fsync (if `durable`), rename. A reader sees the old or the new.

    Raises OSError; the old file is untouched then, and no temporary file stays.
    """
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o664)  # mkstemp makes 0600: other pods of the group must read and replace it
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def shown(path: Path) -> str:
    """A path for a person: from the working folder, if it is below that."""
    return str(path).removeprefix(f"{Path.cwd()}/")


def count(number: int, noun: str) -> str:
    """Such as "1 row" and "2 rows"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` survive a power loss; if it is gone meanwhile, there is nothing to survive."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, wait: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, waiting `wait` seconds for it (-1: as long as it takes).

    Raises LockError when another process holds it, or when the file system can't lock: filelock would fall
    back to a lock file that a killed pod leaves behind for ever, so that fallback is off.
    """
    import filelock  # 12 ms, and a server never locks

    lock = filelock.FileLock(path, timeout=wait, mode=0o664, fallback_to_soft=False, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise LockError(f"{path} is held by another process") from error
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _LOCKLESS:
            raise
        raise LockError(
            f"{path.parent}: this file system has no file locks, so two trials could overwrite each other; "
            "put the store on one that has (a local disk, or NFS with its lock service)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def idx_shape(read: Callable[[int], bytes]) -> tuple[int, ...]:
    """The shape of the bytes that follow, from the header of an idx file (yann.lecun.com/exdb/mnist).

    `read` gives the file's next bytes. Raises ValueError when they don't begin with one.
    """
    magic = read(4)
    sizes = read(4 * magic[3]) if magic[:3] == b"\0\0\x08" and len(magic) == 4 else b""
    if not sizes or len(sizes) < 4 * magic[3]:
        raise ValueError("it doesn't begin as an idx file of bytes")
    return struct.unpack(f">{magic[3]}I", sizes)
