"""The commands of this checkout against the tests' cluster, which passes for MicroK8s when it is the throw-away one."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from release import ROOT, Cluster

import images

BIN = Path(sys.executable).parent
SMALL = (
    "experiment.maxTrials=2",
    "experiment.parallelTrials=2",
    "experiment.maxFailedTrials=1",
    "experiment.trainer.args.epochs=8",
)
PARTS = ("katib-controller", "katib-db-manager", "katib-mysql", "katib-ui")
PART = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: kubeflow}
spec:
  selector: {matchLabels: {part: NAME}}
  template:
    metadata: {labels: {part: NAME}}
    spec:
      containers: [{name: pause, image: "nas.test/pause:1", imagePullPolicy: Never}]
"""


class Nas:
    """Calls commands; `target` is what TARGET= and --target are here."""

    def __init__(self, cluster: Cluster, tools: Path) -> None:
        self.target = "microk8s" if cluster.node else "cluster"
        path = [str(tools), str(BIN), str(Path(__file__).parent), os.environ["PATH"]]
        # Not those of the make that runs these tests: its variables would become the commands'.
        inherited = {k: v for k, v in cluster.environment.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        self.environment = inherited | {"NAS_TARGET": self.target}
        if cluster.node:
            self.environment["NAS_NODE"] = cluster.node.name
            path.append(str(cluster.node.bin))
            _write_builder(tools / "buildah")
        self.environment["PATH"] = os.pathsep.join(path)

    def __call__(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command; it shows no traceback, whatever happens."""
        result = subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert "Traceback" not in result.stderr, result.stderr
        assert not check or result.returncode == 0, f"{shlex.join(words)}:\n{result.stdout}{result.stderr}"
        return result

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Begin a command that heeds Ctrl-C: below a shell's background job it would be born deaf to it."""

        def heed() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        return subprocess.Popen(
            words, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed
        )

    def make_iris(self) -> str:
        """What `make iris TARGET=…` says of a small search."""
        settings = " ".join(f"--set {setting}" for setting in SMALL)
        return self("make", "iris", f"TARGET={self.target}", f"ARGS={settings}").stdout


def _write_builder(path: Path) -> None:
    """A buildah with the tests' images, and with what this machine needs to build them."""
    own = shlex.join(images.BUILDAH[1:])
    mounts = [f"--volume={path}:{inside}:ro" for path, inside in images.SETTINGS.items() if path.exists()]
    build = shlex.join(["build", "--isolation=chroot", *mounts, f"--build-arg=BASE={images.BASE}"])
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = build ]; then shift; exec /usr/bin/buildah {own} {build} "$@"; fi\n'
        f'exec /usr/bin/buildah {own} "$@"\n'
    )
    path.chmod(0o755)


def write_katib(folder: Path) -> list[str]:
    """Options of `nas cluster setup` here: Katib's stand-in is a process outside, so these are its Deployments."""
    (folder / "parts.yaml").write_text("---".join(PART.replace("NAME", name) for name in PARTS))
    (folder / "kustomization.yaml").write_text("resources: [parts.yaml]\n")
    return ["--manifests", str(folder)]
