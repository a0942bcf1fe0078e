"""An Iris and a digits model behind the server's outermost application."""

import sys
from pathlib import Path

import pytest

# In the image the server's modules are at /app, beside modelkit.
sys.path.insert(0, str(Path(__file__).parents[3] / "images" / "server"))

import interface
import models
from lane import Lane


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def iris(root: Path) -> Lane:
    models.promote(root, "iris", models.iris_rule())
    return interface.lane(interface.live(root, "iris"))


@pytest.fixture(scope="module")
def mnist(root: Path) -> Lane:
    models.promote(root, "mnist", models.brightest_of_ten())
    return interface.lane(interface.live(root, "mnist"))
