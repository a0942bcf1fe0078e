"""What is fetched when it is first needed: Python packages such as torch, by uv, and files of a web site."""

import contextlib
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from nas.errors import NasError


def ensure(folder: Path) -> None:
    """Install what `folder`/requirements.txt pins and this environment lacks. Raises NasError when that fails.

    PyTorch comes from its own site, as the build for this machine's GPU, or for CPUs where there is none. Where that
    site can't be reached: from PyPI, which for Linux has the CUDA build alone (it needs its CUDA libraries to start).
    """
    path = folder / "requirements.txt"
    if not path.exists():
        return
    words = ["--python", sys.executable, "--compile-bytecode", "-r", str(path)]
    with contextlib.suppress(NasError):
        pip("--check", "--offline", *words)
        return
    print(f"setting up {folder.name}", flush=True)
    try:
        if "\ntorch==" in path.read_text():
            with contextlib.suppress(NasError):
                pip("--torch-backend", "auto", *words)
                return
            print("PyTorch's own site can't be reached: taking PyPI's build, with CUDA (6 GB)", flush=True)
        pip(*words)
    except NasError as error:
        raise NasError(f"{path} could not be installed: check the network, then run it again\n{error}") from error


def pip(*words: str) -> None:
    """`uv pip install`. Raises NasError."""
    call([str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", *words])


def call(command: list[str], folder: str | None = None) -> None:
    """Run a command in `folder`. Raises NasError with what it said, FileNotFoundError."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NasError(result.stderr.strip() or f"{command[0]}: exit status {result.returncode}")


def download(url: str, timeout: float) -> bytes:
    """What a URL answers, within `timeout` seconds a step. Raises NasError, OSError."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            return bytes(response.read())
    except urllib.error.URLError as error:
        raise NasError(f"{url.rpartition('/')[2]}: {error.reason}") from error
