"""Render the chart and give back objects."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nas import chart as nas_chart

ROOT = Path(__file__).parents[2]
Objects = list[dict[str, Any]]


@pytest.fixture(scope="session", name="helm")
def helm_fixture() -> str:
    """The path of a helm."""
    return helm()


@functools.cache
def helm() -> str:
    return shutil.which("helm") or str(nas_chart.helm(ROOT / ".nas"))


@functools.cache
def template(release: str, *words: str, chart: str = str(ROOT / "charts/nas")) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), "template", release, chart, *words], capture_output=True, text=True, check=False)


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="session")
def render() -> Callable[..., Objects]:
    """Objects of the chart for a values file in values/ and `--set` settings."""

    def run(values: str = "iris", *settings: str, release: str = "x", chart: Path | None = None) -> Objects:
        words = ["--values", str(ROOT / f"values/{values}.yaml"), *sets(*settings)]
        result = template(release, *words, chart=str(chart or ROOT / "charts/nas"))
        assert result.returncode == 0, result.stderr
        return [found for found in yaml.safe_load_all(result.stdout) if found]

    return run


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """What helm says about settings the chart refuses."""

    def run(*settings: str, values: str = "iris", release: str = "x") -> str:
        files = ["--values", str(ROOT / f"values/{values}.yaml")] if values else []
        result = template(release, *files, *sets(*settings))
        assert result.returncode != 0, "the chart accepts it"
        return result.stderr

    return run
