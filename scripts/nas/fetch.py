"""What is fetched when it is first needed: Python packages such as torch, by uv, and files of a web site."""

import importlib.metadata
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from packaging.requirements import Requirement

from nas.errors import NasError


def ensure(folder: Path) -> None:
    """Install what `folder`/requirements.txt pins and this environment lacks. Raises NasError when that fails.

    PyTorch comes from its own site, as the build for this machine's GPU, or for CPUs where there is none. Where that
    site can't be reached: from PyPI, which for Linux has the CUDA build alone (it needs its CUDA libraries to start).
    """
    path = folder / "requirements.txt"
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()] if path.exists() else []
    lacking = [requirement for line in lines if line and _lacks(requirement := Requirement(line))]
    if not lacking:
        return
    print(f"setting up {folder.name}: {', '.join(map(str, lacking))}", flush=True)
    words = ["--python", sys.executable, "--compile-bytecode", "-r", str(path)]
    backend = ["--torch-backend", "auto"] if any(r.name == "torch" for r in lacking) else []
    try:
        try:
            pip(*backend, *words)
        except NasError:
            if not backend:
                raise
            print("PyTorch's own site can't be reached: taking PyPI's build, with CUDA (6 GB)", flush=True)
            pip(*words)
    except NasError as error:
        raise NasError(f"{path} could not be installed: check the network, then run it again\n{error}") from error


def _lacks(requirement: Requirement) -> bool:
    if requirement.marker and not requirement.marker.evaluate():
        return False
    try:
        return importlib.metadata.version(requirement.name) not in requirement.specifier
    except importlib.metadata.PackageNotFoundError:
        return True


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
            data: bytes = response.read()
            return data
    except urllib.error.URLError as error:
        raise NasError(f"{url.rpartition('/')[2]}: {error.reason}") from error
