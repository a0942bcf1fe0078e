import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "server"))  # models: small ones whose answers are known
sys.path.insert(0, str(TESTS.parents[1] / "images" / "batch"))  # in the image it is at /app, beside modelkit

import models  # noqa: E402


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store of both models and an empty place for data."""
    for name, model in (("iris", models.iris_rule()), ("mnist", models.brightest_of_ten())):
        models.promote(tmp_path / "store", name, model)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    monkeypatch.setenv("NAS_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def arguments(place: Path) -> Callable[..., list[str]]:
    """The command line for a model, with its output in OUT."""

    def make(model: str, *words: str | Path) -> list[str]:
        start = ["--store", str(place / "store"), "--model", model, "--output", str(place / "out"), "--workers=1"]
        return [*start, *map(str, words)]

    return make
