"""A real Kubernetes, releases of the chart in it, and what a user does with them: kubectl, helm, the bridge, HTTP."""

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nas import chart
from node import Node

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds that anything may take; a trial takes 15, on a busy machine ten times that
Object = dict[str, Any]


class Cluster:
    """A cluster by its kubeconfig. `node` is the throw-away one, None for a cluster that was there."""

    def __init__(self, kubeconfig: Path, node: Node | None) -> None:
        self.node = node
        self.values = ROOT / "values/microk8s.yaml" if node else Path(os.environ.get("NAS_TEST_VALUES", os.devnull))
        self.environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self._helm = str(chart.helm(ROOT / ".nas"))
        self._kubectl = str(node.bin / "kubectl") if node else "kubectl"

    def kubectl(self, *words: str, check: bool = True, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run kubectl; with `check`, the test fails with what it said when it fails."""
        return self._run([self._kubectl, *words], check, stdin)

    def helm(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run helm; with `check`, the test fails with what it said when it fails."""
        return self._run([self._helm, *words], check)

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        """Start kubectl and go on."""
        pipe = subprocess.PIPE
        return subprocess.Popen([self._kubectl, *words], env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def _run(self, words: list[str], check: bool, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        result = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False, input=stdin, timeout=2 * PATIENCE
        )
        assert not check or result.returncode == 0, f"{' '.join(words)}:\n{result.stdout}{result.stderr}"
        return result


class Release:
    """A release of the chart in a namespace, and what a user asks of it."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, model: str = "iris") -> None:
        self.cluster, self.namespace, self.name, self.model = cluster, namespace, name, model
        self.claim, self.bridge = f"{name}-models", f"{name}-bridge-0"

    def install(self, values: Path = ROOT / "values/iris.yaml", **settings: Any) -> "Release":
        """Install a values file with settings, whose keys have `__` for a dot: `experiment__maxTrials=2`."""
        files = ["--values", str(values), "--values", str(self.cluster.values)]
        self.cluster.helm("install", self.name, str(ROOT / "charts/nas"), *self._where, *files, *_sets(settings))
        return self

    def upgrade(self, **settings: Any) -> None:
        """Change some settings and keep the others, as the chart's notes say to."""
        words = ["upgrade", self.name, str(ROOT / "charts/nas"), *self._where, "--reset-then-reuse-values"]
        self.cluster.helm(*words, *_sets(settings))

    def kubectl(self, *words: str, **more: Any) -> str:
        """What kubectl prints in the release's namespace."""
        return self.cluster.kubectl(*self._where, *words, **more).stdout

    def get(self, kind: str, *words: str) -> list[Object]:
        """Objects of a kind in the namespace, oldest first."""
        found = json.loads(self.kubectl("get", kind, *words, "--sort-by=.metadata.creationTimestamp", "--output=json"))
        items: list[Object] = found.get("items", [found])
        return items

    @property
    def experiment(self) -> Object:
        """The release's newest Experiment."""
        return self.get("experiments", f"--selector=app.kubernetes.io/instance={self.name}")[-1]

    @property
    def trials(self) -> list[Object]:
        """Trials of the newest Experiment."""
        return self.get("trials", f"--selector=katib.kubeflow.org/experiment={self.experiment['metadata']['name']}")

    def pods(self, part: str) -> list[Object]:
        """Pods of a part of the release (serving, bridge, batch, experiment) that aren't going away."""
        of_part = f"app.kubernetes.io/name={part},app.kubernetes.io/instance={self.name}"
        return [p for p in self.get("pods", f"--selector={of_part}") if "deletionTimestamp" not in p["metadata"]]

    def wait(self, condition: str, what: str) -> None:
        """`kubectl wait --for=condition` for the named object."""
        self.kubectl("wait", f"--for={condition}", what, f"--timeout={PATIENCE}s")

    def wait_for_search(self) -> Object:
        """The newest Experiment once it has ended; trials may still run when its goal was reached."""
        until(lambda: ended(self.experiment), "the end of the search")
        return self.experiment

    def store(self, *words: str) -> str:
        """What the store's command line prints, in the bridge pod."""
        return self.run("python3", "-m", "modelkit.store", *words, "--root=/model", f"--model={self.model}")

    def run(self, *words: str) -> str:
        """What a command prints in the bridge pod."""
        return self.kubectl("exec", self.bridge, "--", *words)

    @property
    def history(self) -> list[Object]:
        """Every decision of the store, oldest first."""
        path = f"/model/{self.model}/history.jsonl"
        return [json.loads(line) for line in self.run("sh", "-c", f"cat {path} || true").splitlines()]

    @contextlib.contextmanager
    def forwarded(self) -> Iterator[Callable[..., Object]]:
        """A function that asks the server, `ask("/predict/", [5.1, 3.5, 1.4, 0.2])`, through a port-forward."""
        words = [*self._where, "port-forward", f"service/{self.name}-serving", ":8000"]
        process = self.cluster.popen(*words)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            port = re.search(r":(\d+) ->", line)
            assert port, f"no port-forward: {line}"

            def ask(path: str, body: Any = None) -> Object:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port[1]}{path}",
                    None if body is None else json.dumps(body).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=10) as response:
                    answer: Object = json.load(response)
                    return answer

            yield ask
        finally:
            process.terminate()
            process.communicate()

    @property
    def _where(self) -> list[str]:
        return ["--namespace", self.namespace]


def _sets(settings: Object) -> list[str]:
    words = []
    for key, value in settings.items():
        words += ["--set-json", f"{key.replace('__', '.')}={json.dumps(value)}"]
    return words


def until(check: Callable[[], Any], what: str) -> Any:
    """The first truthy answer of `check`; the test fails when there is none in time."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := check()):
        assert time.monotonic() < deadline, f"still waiting for {what} after {PATIENCE} s"
        time.sleep(0.3)
    return answer


def holds(item: Object, kind: str) -> bool:
    """Whether a condition of an object is True."""
    found = [c["status"] for c in item.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found == ["True"]


def ended(experiment: Object) -> bool:
    return holds(experiment, "Succeeded") or holds(experiment, "Failed")
