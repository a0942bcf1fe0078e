"""Chromium in front of servers of an Iris model and of a real, quickly trained MNIST model."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nas import data
from selenium import webdriver

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "images/server"), str(ROOT / "tests/images/server")]

import models  # noqa: E402
import process  # noqa: E402
from modelkit import files  # noqa: E402
from modelkit.store import Store  # noqa: E402


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium; its console and its size are each test's own."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    assert program, "no Chromium on PATH: apt-get install chromium chromium-driver"
    assert driver, "no chromedriver on PATH: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chrome:
        chrome.set_script_timeout(60)
        yield chrome


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of an Iris model."""
    root = tmp_path_factory.mktemp("iris")
    models.promote(root, "iris", models.iris_rule())
    with process.server(root) as (_, __, url):
        yield url


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an MNIST model that the trainer made in two epochs."""
    home = Path(os.environ.get("NAS_HOME", ROOT / ".nas"))
    data.ensure("mnist", home / "data")
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "mnist"  # one for all workers of xdist
    root.mkdir(exist_ok=True)
    folder = root / "mnist/trials/search/quick"
    words = ["--layers=1", "--units=128", "--lr=0.005", "--epochs=2", "--seed=1", f"--export-path={folder}"]
    command = [sys.executable, str(ROOT / "images/mnist-trainer/train.py"), *words]
    environment = os.environ | {"NAS_DATA": str(home / "data"), "NAS_CPUS": "1"}
    with files.locked(root / ".lock"):
        if not (root / "mnist/CURRENT").exists():
            subprocess.run(command, check=True, env=environment, timeout=570, stdout=subprocess.DEVNULL)
    assert Store(root, "mnist").load().manifest.metrics.validation.accuracy > 0.95
    return root


@pytest.fixture(scope="session")
def mnist(trained: Path) -> Iterator[str]:
    """The URL of a server of the MNIST model."""
    with process.server(trained, name="mnist") as (_, __, url):
        yield url


@pytest.fixture
def shot(browser: webdriver.Chrome, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Keep a picture of the page in .nas/screenshots, to be looked at."""

    def take() -> None:
        folder = ROOT / ".nas/screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        name = request.node.name.removeprefix("test_").replace("/", "")
        assert browser.save_screenshot(str(folder / f"{name}.png"))

    return take
