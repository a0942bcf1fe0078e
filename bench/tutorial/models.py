"""The same networks for both sides: scikit-learn's and torch's pickles for the tutorial, ONNX for our store.

Usage: models.py FOLDER     writes model.pkl, mnist_model.pkl, iris.npy, digits.npy and store/
"""

import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from modelkit import artifact
from modelkit.store import Store
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier
from torch import nn


def offer(root: Path, name: str, data: bytes, contract: artifact.Contract) -> None:
    """Make a model current in the store at `root`."""
    folder = root / name / "trials/bench/bench"
    folder.mkdir(parents=True)
    manifest = artifact.Manifest(
        model=name,
        digest=artifact.digest(data),
        size=len(data),
        input=contract.input,
        classes=contract.classes,
        metrics=artifact.Metrics(artifact.Scores(accuracy=0, loss=0, rows=1, estimator="holdout")),
        experiment="bench",
        trial="bench",
        parameters={},
        seed=0,
        epoch=1,
        epochs_run=1,
        data_digest="0" * 64,
        outcomes=artifact.Outcomes.of(np.ones(1, bool)),
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )
    artifact.save(folder, data, manifest)
    Store(root, name).offer(folder)


def main(folder: Path) -> None:
    table = load_iris()
    classifier = MLPClassifier((32, 32), max_iter=1000, random_state=0).fit(table.data, table.target)
    (folder / "model.pkl").write_bytes(pickle.dumps(classifier))
    layers = list(zip(classifier.coefs_, classifier.intercepts_, strict=True))
    names, low, high = table.feature_names, table.data.min(axis=0), table.data.max(axis=0)
    columns = [name.replace(" (cm)", "").replace(" ", "_") for name in names]
    features = [artifact.Feature(*column) for column in zip(columns, low.tolist(), high.tolist(), strict=True)]
    iris = artifact.Contract(artifact.Input("float32", [4], features=features), table.target_names.tolist())
    offer(folder / "store", "iris", artifact.mlp(layers, "relu", iris.input, iris.classes), iris)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    (folder / "mnist_model.pkl").write_bytes(pickle.dumps(network))
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    weights = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in linear]
    mnist = artifact.Contract(artifact.Input("uint8", [784], image=[28, 28]), [str(digit) for digit in range(10)])
    scale = np.array([1 / 255])
    offer(folder / "store", "mnist", artifact.mlp(weights, "relu", mnist.input, mnist.classes, scale=scale), mnist)
    digits = np.random.default_rng(0).integers(256, size=(256, 784)).astype(np.uint8)
    np.save(folder / "digits.npy", digits)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
