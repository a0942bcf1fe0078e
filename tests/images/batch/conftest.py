import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "server"))  # models: small ones whose answers are known
sys.path.insert(0, str(TESTS.parents[1] / "images" / "batch"))  # in the image it is at /app, beside modelkit

import models  # noqa: E402


def images(digits: list[int]) -> bytes:
    """An idx3 file of images that the brightest-of-ten model takes for these digits."""
    pixels = np.zeros((len(digits), 784), np.uint8)
    pixels[np.arange(len(digits)), digits] = 255
    return struct.pack(">4I", 0x0803, len(digits), 28, 28) + pixels.tobytes()


def labels(digits: list[int]) -> bytes:
    return struct.pack(">2I", 0x0801, len(digits)) + bytes(digits)


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
