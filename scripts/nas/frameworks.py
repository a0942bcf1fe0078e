"""What a trainer or the report needs beyond requirements.txt, such as torch: set up when it is first needed."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from nas.errors import NasError


def ensure(folder: Path) -> None:
    """Install what `folder`/requirements.txt pins and this environment lacks. Raises NasError when that fails."""
    requirements = folder / "requirements.txt"
    lacking = [r for r in _requirements(requirements) if not _installed(r)]
    if not lacking:
        return
    print(f"setting up {folder.name}: {', '.join(map(str, lacking))}", flush=True)
    uv = str(Path(sys.executable).with_name("uv"))
    command = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        sys.executable,
        "--compile-bytecode",
        "-r",
        str(requirements),
    ]
    if subprocess.run(command, check=False).returncode:
        raise NasError(f"{requirements} could not be installed (see above): check the network, then run it again")


def _requirements(path: Path) -> list[Requirement]:
    if not path.exists():
        return []
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    return [r for r in requirements if r.marker is None or r.marker.evaluate()]


def _installed(requirement: Requirement) -> bool:
    try:
        return importlib.metadata.version(requirement.name) in requirement.specifier
    except importlib.metadata.PackageNotFoundError:
        return False
