"""Render the chart and give back objects.

`python tests/chart/rendering.py` writes golden/VERSION.yaml, what this version of the chart renders: before a release.
"""

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from nas import chart as nas_chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/nas"
# What a release is installed from: the values files of values/, those that need a search on top of one.
PRESETS = {
    "iris": ("iris",),
    "mnist": ("mnist",),
    "tutorial/mnist": ("tutorial/mnist",),
    "microk8s": ("iris", "microk8s"),
    "production": ("iris", "production"),
    "mnist-best": ("mnist-best",),
    "fashion-mnist": ("fashion-mnist",),
    "gpu": ("mnist", "gpu"),
    "all-options": ("all-options",),
}
EVERYTHING = ("batch.enabled=true",)
Object = dict[str, Any]
Objects = list[Object]


@functools.cache
def helm() -> str:
    """The path of a helm; HELM names another one."""
    return os.environ.get("HELM") or shutil.which("helm") or str(nas_chart.helm(ROOT / ".nas"))


@functools.cache
def run_helm(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *words], input=stdin, capture_output=True, text=True, check=False)


def words(values: str | Object | None, settings: tuple[str, ...]) -> tuple[list[str], str | None]:
    """helm's arguments for a preset's name or for values themselves, with `--set` settings; and its stdin."""
    files = [str(ROOT / f"values/{name}.yaml") for name in PRESETS[values]] if isinstance(values, str) else []
    stdin = json.dumps(values) if isinstance(values, dict) else None
    given = ["--values", "-"] if stdin is not None else [word for file in files for word in ("--values", file)]
    return given + [word for setting in settings for word in ("--set", setting)], stdin


def render(
    values: str | Object = "iris",
    *settings: str,
    show_only: str = "",
    kube_version: str = "",
    api_versions: tuple[str, ...] = (),
    release: str = "x",
    chart: Path = CHART,
) -> Objects:
    """Objects of the chart for a preset or for values, and `--set` settings."""
    given, stdin = words(values, settings)
    given += ["--show-only", show_only] if show_only else []
    given += ["--kube-version", kube_version] if kube_version else []
    given += [word for version in api_versions for word in ("--api-versions", version)]
    result = run_helm("template", release, str(chart), "--namespace", "team", *given, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return [found for found in yaml.safe_load_all(result.stdout) if found]


def refusal(*settings: str, values: str | Object | None = "iris", release: str = "x") -> str:
    """What helm says about settings that the chart refuses."""
    given, stdin = words(values, settings)
    result = run_helm("template", release, str(CHART), *given, stdin=stdin)
    assert result.returncode != 0, "the chart accepts it"
    return result.stderr


def notes(values: str | Object = "iris", *settings: str) -> str:
    """What a user is told after an install: NOTES.txt, which only an install in a cluster prints."""
    (found,) = render(values, *settings, show_only="templates/notes.yaml", chart=_chart_with_notes())
    text: str = found["text"]
    return text


@functools.cache
def _chart_with_notes() -> Path:
    """A copy of the chart whose notes are an object."""
    copy = Path(tempfile.mkdtemp(prefix="nas-chart-")) / "nas"
    atexit.register(shutil.rmtree, copy.parent)
    shutil.copytree(CHART, copy)
    text = (copy / "templates/NOTES.txt").read_text()
    (copy / "templates/_notes.tpl").write_text(f'{{{{- define "notes" }}}}{text}{{{{- end }}}}')
    (copy / "templates/notes.yaml").write_text('text: {{ include "notes" . | toJson }}\n')
    return copy


def one(objects: Objects, kind: str, part: str = "") -> Object:
    """The only object of a kind, or the only one of a part of the chart."""
    (found,) = [o for o in objects if o["kind"] == kind and part in ("", label(o))]
    return found


def label(item: Object) -> str:
    """The part of the chart that an object belongs to."""
    name: str = item["metadata"]["labels"]["app.kubernetes.io/name"]
    return name


def experiment(objects: Objects) -> Object:
    return one(objects, "Experiment")


def trial_pod(objects: Objects) -> Object:
    pod: Object = experiment(objects)["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    return pod


def pods(objects: Objects) -> Iterator[Object]:
    """Specs of all pods that the objects lead to, a trial's included."""
    for item in objects:
        if item["kind"] == "Experiment":
            yield trial_pod([item])
        elif item["kind"] == "Pod":
            yield item["spec"]
        elif item["kind"] == "CronJob":
            yield item["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif "template" in item.get("spec", {}):
            yield item["spec"]["template"]["spec"]


def pod_of(objects: Objects, part: str) -> Object:
    """The spec of the pods of a part: trials for the experiment."""
    (found,) = pods([item for item in objects if label(item) == part and item["kind"] != "Pod"])
    return found


def write_golden() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    objects = sorted(render("iris", *EVERYTHING, release="iris-nas"), key=lambda o: (o["kind"], o["metadata"]["name"]))
    path = Path(__file__).parent / f"golden/{version}.yaml"
    path.write_text(yaml.safe_dump_all(objects, width=120))


if __name__ == "__main__":
    write_golden()
