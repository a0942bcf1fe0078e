"""The server as a process of its own, on a free port."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import serve

OPTIONS = ["--model", "iris", "--host", "127.0.0.1"]


@contextlib.contextmanager
def server(
    root: Path, *words: str, name: str = "iris", status: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server on a free port: the process, its first line and its URL. It is ended, and must leave with `status`."""
    process = subprocess.Popen(
        [sys.executable, serve.__file__, *OPTIONS, "--model", name, "--store", str(root), "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"http://localhost:\d+", line)
        assert found, line
        yield process, line, found[0]
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert process.returncode == status
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
