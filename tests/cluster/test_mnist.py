"""MNIST with PyTorch, whose image takes minutes and 20 GB of disk: only by `make test-cluster ARGS=--mnist`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from commandline import Nas
from release import Release

SHORT = ("maxTrials=2", "parallelTrials=1", "maxFailedTrials=1", "trainer.args.epochs=2")


def test_mnist_is_searched_served_and_its_test_set_scored(
    nas: Nas, new_release: Callable[..., Release], tmp_path: Path
) -> None:
    release = new_release("mnist-nas")
    release.model = "mnist"
    where = ["--release", release.name, "--namespace", release.namespace]
    settings = [word for setting in SHORT for word in ("--set", f"experiment.{setting}")]
    said = nas("nas", "run", "mnist", *where, *settings).stdout
    assert re.search(r"^model +mnist \w+ promoted", said, re.MULTILINE), said
    release.wait("condition=Available", "deployment/mnist-nas-serving")
    model = json.loads(release.store("show"))
    with release.forwarded() as ask:
        assert ask("/model")["digest"] == model["digest"]
    said = nas("nas", "batch", *where, "--output", str(tmp_path / "out")).stdout
    assert "Sample 0: predicted class = 7" in said
    accuracy = re.search(r"^accuracy +([\d.]+) of 10000", said, re.MULTILINE)
    assert accuracy, said
    assert float(accuracy[1]) == round(model["metrics"]["test"]["accuracy"], 4) > 0.95
    assert list((tmp_path / "out").rglob("*.parquet"))
