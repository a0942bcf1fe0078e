"""Container images without a registry: the project's Dockerfiles on a Debian made here, brought into a node.

    images.py [NODE] [NAME…]    build those images (all that the tests need) and import them

Debian's packages and Python's come through the machine's own apt and pip settings, certificates included, which are
mounted while an image is built and stay out of it.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from node import CACHE, Node, install, run, stage

ROOT = Path(__file__).parents[2]
NAMES = ("server", "tabular-trainer", "batch")
PACKAGES = {"buildah": "/usr/bin/buildah", "mmdebstrap": "/usr/bin/mmdebstrap"}
DEBIAN = [
    "--variant=minbase",
    "--include=python3,python3-pip,ca-certificates",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "info", "locale")),
    "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg",
    "trixie",
]
BASE = "nas.test/base:" + hashlib.sha256(repr(DEBIAN).encode()).hexdigest()[:12]
SETTINGS = {  # of the machine: where a build finds them
    Path("/etc/ssl/certs"): "/etc/ssl/certs",
    Path("/etc/pip.conf"): "/etc/pip.conf",
    Path.home() / ".config/pip/pip.conf": "/etc/xdg/pip/pip.conf",
}
BUILDAH = ["buildah", "--root", f"{CACHE}/buildah", "--runroot", "/run/nas-buildah", "--storage-driver", "overlay"]


def build(name: str) -> str:
    """Build images/NAME as NAME:latest, where its files have changed; the image's id."""
    install(PACKAGES)
    if not run([*BUILDAH, "images", "--quiet", "--filter", f"reference={BASE}"]):
        with stage("base image"):
            _make_base()
    mounts = [f"--volume={path}:{inside}:ro" for path, inside in SETTINGS.items() if path.exists()]
    words = [*BUILDAH, "build", "--quiet", "--layers", "--format=docker", "--isolation=chroot", *mounts]
    words += [f"--build-arg=BASE={BASE}", f"--file=images/{name}/Dockerfile", f"--tag={reference(name)}", "images"]
    with stage(f"image {name}"):
        return run(words, cwd=ROOT).strip()


def load(node: Node, name: str) -> None:
    """Build an image and import it into a node, unless it has this very one."""
    image = build(name)
    ctr = ["ctr", "--address", str(node.containerd), "--namespace", "k8s.io"]
    if subprocess.run([*ctr, "content", "get", f"sha256:{image}"], capture_output=True, check=False).returncode == 0:
        return
    archive = CACHE / f"{name}-{image[:12]}.tar"
    try:
        with stage(f"import of {name}"):
            run([*BUILDAH, "push", "--quiet", image, f"docker-archive:{archive}:{reference(name)}"])
            run([*ctr, "images", "import", str(archive)])
    finally:
        archive.unlink(missing_ok=True)


def reference(name: str) -> str:
    """The name that a pod's `image: NAME:latest` means."""
    return f"docker.io/library/{name}:latest"


def _make_base() -> None:
    """A small Debian with Python and pip."""
    archive = CACHE / "base.tar"
    run(["mmdebstrap", *DEBIAN, str(archive)])
    container = run([*BUILDAH, "from", "scratch"]).strip()
    run([*BUILDAH, "add", "--quiet", container, str(archive), "/"])
    run([*BUILDAH, "commit", "--quiet", "--rm", container, BASE])
    archive.unlink()


if __name__ == "__main__":
    for each in sys.argv[2:] or NAMES:
        load(Node(sys.argv[1] if len(sys.argv) > 1 else "default"), each)
