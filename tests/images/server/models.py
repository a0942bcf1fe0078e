"""Small models whose answers are known, promoted in a store, for the tests of what serves and scores them."""

from pathlib import Path

import numpy as np
from modelkit import artifact
from modelkit.store import Store

IRIS = artifact.Input(
    dtype="float32",
    shape=[4],
    features=[
        artifact.Feature("sepal_length", 4.3, 7.9),
        artifact.Feature("sepal_width", 2.0, 4.4),
        artifact.Feature("petal_length", 1.0, 6.9),
        artifact.Feature("petal_width", 0.1, 2.5),
    ],
)
SPECIES = ["setosa", "versicolor", "virginica"]
COLOURS = artifact.Input(
    dtype="float32",
    shape=[2],
    features=[artifact.Feature("colour", 0, 1, ["red", "blue"]), artifact.Feature("size", 0, 9)],
)
MNIST = artifact.Input(dtype="uint8", shape=[784], image=[28, 28])
DIGITS = [str(digit) for digit in range(10)]


def iris_rule() -> bytes:
    """A longer petal is a later species: setosa below about 2.5 cm, virginica above about 4.9 cm."""
    weights = np.zeros((4, 3))
    weights[2] = [0, 8, 16]
    return artifact.mlp([(weights, np.array([0, -20, -59.2]))], "identity", IRIS, SPECIES)


def iris_constant(index: int) -> bytes:
    """Every flower is of one species."""
    bias = np.zeros(3)
    bias[index] = 20
    return artifact.mlp([(np.zeros((4, 3)), bias)], "identity", IRIS, SPECIES)


def brightest_of_ten() -> bytes:
    """The digit is the position of the brightest among the first ten pixels."""
    weights = np.zeros((784, 10))
    weights[np.arange(10), np.arange(10)] = 30
    return artifact.mlp([(weights, np.zeros(10))], "identity", MNIST, DIGITS, scale=np.array([1 / 255]))


def red_or_not() -> bytes:
    """Red is warm, blue is cold."""
    weights = np.array([[0.0, 0], [20, 0], [0, 20]])  # size, red, blue
    return artifact.mlp([(weights, np.zeros(2))], "identity", COLOURS, ["warm", "cold"])


def promote(root: Path, name: str, data: bytes, takes: artifact.Input = IRIS, classes: list[str] = SPECIES) -> str:
    """Put a model through a trial's folder into the store, make it current, and return its digest."""
    kept(root, name, data, takes, classes)
    digest = artifact.digest(data)
    Store(root, name).promote(digest)
    return digest


def kept(root: Path, name: str, data: bytes, takes: artifact.Input = IRIS, classes: list[str] = SPECIES) -> Path:
    """Write a model as a trial's best, and return the trial's folder."""
    if name == "mnist":
        takes, classes = MNIST, DIGITS
    digest = artifact.digest(data)
    folder = root / name / "trials" / "search" / digest[:8]
    folder.mkdir(parents=True, exist_ok=True)
    scores = artifact.Scores(accuracy=0.9, loss=0.1, rows=10, estimator="holdout")
    manifest = artifact.Manifest(
        model=name,
        digest=digest,
        size=len(data),
        input=takes,
        classes=classes,
        metrics=artifact.Metrics(scores),
        experiment="search",
        trial=digest[:8],
        parameters={},
        seed=1,
        epoch=1,
        epochs_run=1,
        data_digest="0" * 64,
        outcomes=artifact.Outcomes.of(np.ones(10, bool)),
        versions={},
        created="2026-11-24T00:00:00.000+00:00",
    )
    artifact.save(folder, data, manifest)
    return folder
