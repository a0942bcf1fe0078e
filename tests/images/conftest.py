"""A model small enough to write in a moment, and a trial folder that holds one."""

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from modelkit import artifact

CLASSES = ["no", "yes"]
INPUT = artifact.Input(
    dtype="float32", shape=[2], features=[artifact.Feature("left", 0, 1), artifact.Feature("right", 0, 1)]
)


@pytest.fixture
def onnx() -> Callable[..., bytes]:
    """Write a two-feature, two-class model whose weights depend on `seed` alone."""

    def write(seed: int = 0, **changes: object) -> bytes:
        random = np.random.default_rng(seed)
        layers = [(random.normal(size=(2, 4)), random.normal(size=4)), (random.normal(size=(4, 2)), np.zeros(2))]
        settings = {"layers": layers, "activation": "relu", "input": INPUT, "classes": CLASSES} | changes
        return artifact.mlp(**settings)

    return write


@pytest.fixture
def trial_folder(tmp_path: Path, onnx: Callable[..., bytes]) -> Callable[..., Path]:
    """Leave a trial's best model in the store under tmp_path, as a trial that ended would."""

    def write(name: str, accuracy: float, seed: int | None = None, data: bytes = b"", **changes: object) -> Path:
        folder = tmp_path / "demo" / "trials" / "search" / name
        folder.mkdir(parents=True)
        model = data or onnx(seed=sum(name.encode()) if seed is None else seed)
        manifest = artifact.Manifest(
            model="demo",
            digest=artifact.digest(model),
            size=len(model),
            input=INPUT,
            classes=CLASSES,
            metrics=artifact.Metrics(artifact.Scores(accuracy=accuracy, loss=0.5, rows=10, estimator="holdout")),
            experiment="search",
            trial=name,
            parameters={"units": "4"},
            seed=1,
            epoch=3,
            epochs_run=4,
            data_digest="d" * 64,
            outcomes=artifact.Outcomes.of(np.arange(1000) < round(accuracy * 1000)),
            versions={},
            created=f"2026-01-01T00:00:{len(list(folder.parent.iterdir())):02}+00:00",
        )
        artifact.save(folder, model, msgspec.structs.replace(manifest, **changes))
        return folder

    return write


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., list[str]]:
    """A command line for a small real trainer on a made-up table; see `_TRAINER`."""

    script = tmp_path / "train.py"
    script.write_text(_TRAINER)
    return lambda *words: [sys.executable, str(script), *words]


_TRAINER = '''
"""Logistic regression by gradient descent on a table of 400 rows, a quarter held out."""
import os, pathlib, signal
import numpy as np
from modelkit import artifact, trial

parser = trial.argument_parser(__doc__)
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--kill-at", type=int, default=0)
parser.add_argument("--nan-at", type=int, default=0)
parser.add_argument("--signal-at", type=int, default=0)
parser.add_argument("--signal", type=int, default=int(signal.SIGTERM))
args = parser.parse_args()
random = np.random.default_rng(7)
x = random.normal(size=(400, 2)).astype(np.float32)
y = (x @ [1.0, -2.0] + random.normal(size=400) > 0).astype(int)
contract = artifact.Input(dtype="float32", shape=[2])
with trial.Trial(
    args, model="demo", input=contract, classes=["no", "yes"],
    data=trial.Data(x, y, [np.arange(300, 400)], test=(x[:50], y[:50])),
) as run:
    weights = run.state["weights"] if run.state else np.random.default_rng(args.seed).normal(size=(2, 2))
    for epoch in run.epochs():
        if epoch == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == args.signal_at:
            os.kill(os.getpid(), args.signal)
        scores = np.exp(x[:300] @ weights)
        scores /= scores.sum(axis=1, keepdims=True)
        loss = -np.log(scores[np.arange(300), y[:300]]).mean()
        weights = weights - args.lr * x[:300].T @ (scores - np.eye(2)[y[:300]]) / 300
        if epoch == args.nan_at:
            loss = float("nan")
        model = artifact.mlp([(weights, np.zeros(2))], "identity", contract, ["no", "yes"])
        run.report(loss=float(loss), model=model, state={"weights": weights})
'''
