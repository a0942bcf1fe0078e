"""Train a multi-layer perceptron on a table, epoch by epoch, and keep its best epoch.

The table is Iris or, with --data and --target, a CSV file whose header names its columns; --columns says which of them
to learn from and which hold categories, which become one column each inside the model. scikit-learn's MLPClassifier
goes on from its own weights and optimiser state with every `partial_fit`, which takes no notice of its max_iter and so
warns of nothing.

Few rows are too few to set some aside. A model per fold of a stratified cross-validation and one on all training
rows train in lockstep: an epoch's accuracy is that of all held-out predictions together, and the all-rows
model of the best epoch is kept. Tables of many rows have a hold-out instead. One row in five is the test set: no
choice depends on it.

Accuracy on few rows moves in steps, and may not move at all in the first epochs. So an epoch also counts as an
improvement, and patience starts anew, when it is as accurate as the best at a lower cross-entropy. And an epoch makes
at least STEPS steps, the first one FIRST_STEPS: after one pass over 100 rows an accuracy is luck, and the luckiest
epoch would be kept. They are one `partial_fit`, over the rows in several orders one after another: its checks take as
long as ten steps.

What makes few rows go far: columns are made uncorrelated by their covariance within the classes, so that the L2
penalty shrinks towards linear discriminant analysis instead of towards the accidents of scale; and what is kept is a
moving average of the weights over the epochs, without the noise of the last steps.

Example: python3 train.py --layers=2 --units=16 --lr=0.01 --export-path=best
"""

import csv
import importlib.util
import itertools
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from modelkit import artifact, trial  # isort: skip - before numpy: it settles the number of threads

import numpy as np

SPLIT_SEED = 0  # the splits belong to the data, not to the trial, so that trials and searches compare
PARTS = 5  # one row in so many is tested on, and of the others is held out
FIRST_STEPS, STEPS = 108, 36  # the first epoch and the others take at least so many, in several passes if need be
MANY = 2000  # rows from which a hold-out is enough
SHRINKAGE = 0.1  # of the correlations within classes, of which few rows know little
AVERAGE = 0.8  # decay of the moving average, each epoch


class Table(NamedTuple):
    """Rows float32 [N, features] as the model takes them, class indices int64 [N], and what they stand for."""

    rows: artifact.Array
    labels: artifact.Array
    features: list[artifact.Feature]
    classes: list[str]


def read_iris() -> Table:
    """scikit-learn's copy, without importing it."""
    folder = Path(str(importlib.util.find_spec("sklearn").origin)).parent  # type: ignore[union-attr]
    cells = np.loadtxt(folder / "datasets/data/iris.csv", delimiter=",", skiprows=1)
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    features = [artifact.Feature(name, 0, 0) for name in names]
    classes = ["setosa", "versicolor", "virginica"]
    return Table(cells[:, :-1].astype(np.float32), cells[:, -1].astype(np.int64), features, classes)


def read_csv(path: Path, target: str, columns: str) -> Table:
    """A CSV file; `columns` is NAME or NAME:category, comma-separated, empty for all but the target as numbers.

    Raises OSError, csv.Error, ValueError.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *lines = [line for line in csv.reader(file) if line] or [[]]
    kinds = dict(word.partition(":")[::2] for word in columns.split(",") if word)
    kinds = kinds or {name: "" for name in header if name != target}
    for name, kind in [(target, ""), *kinds.items()]:
        if name not in header:
            raise ValueError(f"it has no column {name!r}; it has: {', '.join(header)}")
        if kind not in ("", "number", "category"):
            raise ValueError(f"--columns: {kind!r} is neither number nor category")
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise ValueError(f"line {number}: expected {len(header)} cells as in its header")
    cells = {name: [line[header.index(name)] for line in lines] for name in [target, *kinds]}
    classes, labels = np.unique(cells[target], return_inverse=True)
    if np.bincount(labels, minlength=2).min() < 2 * PARTS:
        raise ValueError(f"{target} needs two classes or more, each with at least {2 * PARTS} rows")
    values = {name: sorted(set(cells[name])) for name, kind in kinds.items() if kind == "category"}
    features = [artifact.Feature(name, 0, 0, values.get(name)) for name in kinds]
    rows = np.empty((len(lines), len(features)), np.float32)
    for number, row in enumerate(zip(*(cells[name] for name in kinds), strict=True)):
        try:
            rows[number] = [feature.number(cell) for feature, cell in zip(features, row, strict=True)]
        except ValueError as error:
            raise ValueError(f"line {number + 2}: {error}") from error
    return Table(rows, labels.astype(np.int64), features, classes.tolist())


def stratified(labels: artifact.Array, parts: int, seed: int = SPLIT_SEED) -> list[artifact.Array]:
    """Indices of `parts` disjoint parts of the rows, each with every class's share."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[part::parts]) for part in range(parts)]


def split(table: Table) -> trial.Data:
    """The table with its test set apart: cross-validation of few rows, one hold-out of many."""
    few = len(table.rows) < MANY
    test = stratified(table.labels, PARTS)[0] if few else trial.held_out(table.rows, table.labels, PARTS)
    train = np.setdiff1d(np.arange(len(table.rows)), test)
    rows, labels = table.rows[train], table.labels[train]
    held = stratified(labels, PARTS) if few else [trial.held_out(rows, labels, PARTS, 1)]
    return trial.Data(rows, labels, held, (table.rows[test], table.labels[test]))


class Learner:
    """One MLPClassifier on the rows of a table; an epoch at a time."""

    def __init__(self, args: Namespace, contract: artifact.Input, table: Table) -> None:
        import sklearn  # takes a second to import: not for a digest of the data
        from sklearn.neural_network import MLPClassifier

        sklearn.set_config(assume_finite=True, skip_parameter_validation=True)  # the checks outlast the training
        self.contract, self.classes, self.labels, self.seed = contract, table.classes, table.labels, args.seed
        wide = artifact.widened(table.rows, contract).astype(np.float64)
        self.offset = wide.mean(axis=0)
        self.whitening = _whitening(wide, table.labels)
        self.rows = (wide - self.offset) @ self.whitening
        self.network = MLPClassifier(
            hidden_layer_sizes=(args.units,) * args.layers,
            activation=args.activation,
            learning_rate_init=args.lr,
            batch_size=args.batch_size,
            alpha=args.alpha,
            shuffle=False,  # an epoch's order is drawn here
            random_state=args.seed,
        )
        self.average: list[artifact.Array] = []
        self.done = 0  # epochs

    def epoch(self) -> None:
        draw = np.random.default_rng([self.seed, self.done])
        passes = -(-(STEPS if self.done else FIRST_STEPS) * self.network.batch_size // len(self.rows))
        order = np.concatenate([draw.permutation(len(self.rows)) for _ in range(passes)])
        try:
            self.network.partial_fit(self.rows[order], self.labels[order], classes=range(len(self.classes)))
        except ValueError as error:  # scikit-learn's word for weights that aren't finite
            raise trial.TrialError(f"training diverged, a lower --lr may help: {error}") from error
        # The average starts short, so that it isn't held back by the random beginning.
        keep, weights = min(AVERAGE, self.done / (self.done + 2)), self._weights()
        self.average = [keep * a + (1 - keep) * w for a, w in zip(self.average or weights, weights, strict=True)]
        self.done += 1

    def onnx(self) -> bytes:
        half = len(self.average) // 2
        layers = list(zip(self.average[:half], self.average[half:], strict=True))
        if self.network.out_activation_ == "logistic":  # of two classes scikit-learn has one output: as two, 0 and it
            weights, bias = layers[-1]
            layers[-1] = np.hstack([0 * weights, weights]), np.hstack([0 * bias, bias])
        layers[0] = self.whitening @ layers[0][0], layers[0][1]
        return artifact.mlp(layers, self.network.activation, self.contract, self.classes, self.offset)

    def _weights(self) -> list[artifact.Array]:
        return [*self.network.coefs_, *self.network.intercepts_]

    def _tensors(self) -> list[artifact.Array]:
        adam = self.network._optimizer
        return [*self._weights(), *adam.ms, *adam.vs, *self.average]

    def state(self) -> artifact.Array:
        """All numbers that the next epoch depends on."""
        return np.concatenate([[self.network._optimizer.t, self.done], *(t.ravel() for t in self._tensors())])

    def begin(self, layers: list[artifact.Layer | None]) -> None:
        """Start from these layers, as a model file has them, where they aren't None."""
        self.epoch()  # builds the network and the optimiser, whose numbers are then replaced
        for place, layer in enumerate(layers):
            if layer:
                weights, bias = layer
                weights = np.linalg.solve(self.whitening, weights) if place == 0 else weights
                if self.network.coefs_[place].shape != weights.shape:  # one output of two classes, as in `onnx`
                    weights, bias = weights[:, 1:] - weights[:, :1], bias[1:] - bias[:1]
                self.network.coefs_[place][...], self.network.intercepts_[place][...] = weights, bias
        del self.network._optimizer
        self.average, self.done = [], 0

    def restore(self, state: artifact.Array) -> None:
        self.epoch()  # builds the network and the optimiser, whose numbers are then replaced
        tensors = self._tensors()
        counters, *parts = np.split(state, 2 + np.cumsum([0, *(tensor.size for tensor in tensors[:-1])]))
        for tensor, saved in zip(tensors, parts, strict=True):
            tensor[...] = saved.reshape(tensor.shape)
        self.network._optimizer.t, self.done = map(int, counters)


def _whitening(rows: artifact.Array, labels: artifact.Array) -> artifact.Array:
    """The matrix [columns, columns] that makes the columns' covariance within the classes the identity, nearly."""
    deviation = rows.std(axis=0)
    deviation[deviation == 0] = 1
    means = np.stack([rows[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    within = (rows - means[labels]) / deviation
    covariance = within.T @ within / len(rows)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(values + 1e-3) / deviation[:, None])


def arguments(words: list[str] | None = None) -> Namespace:
    parser = trial.argument_parser(__doc__)
    add = parser.add_argument
    add("--layers", type=trial.at_least(1), required=True, help="hidden layers")
    add("--units", type=trial.at_least(1), required=True, help="units in each hidden layer")
    add("--lr", type=float, required=True, help="Adam's learning rate")
    add("--activation", choices=list(artifact.ACTIVATIONS), default="relu", help="between layers")
    add("--batch-size", type=trial.at_least(1), default=16, help="rows in a step")
    add("--alpha", type=float, default=0.5, help="L2 penalty")
    add("--data", default="iris", help="Iris, or a CSV file, in $NAS_DATA if relative")
    add("--target", default="", help="the CSV file's column with the classes")
    add("--columns", default="", help="those to learn from: NAME or NAME:category,… (default: all)")
    args = parser.parse_args(words)
    if args.data != "iris" and not args.target:
        parser.error("--data needs --target, the column with the classes")
    return args


def main() -> None:
    args = arguments()
    path = Path(os.environ.get("NAS_DATA", "/data")) / args.data
    try:
        table = read_iris() if args.data == "iris" else read_csv(path, args.target, args.columns)
    except (OSError, csv.Error, ValueError) as error:
        sys.exit(f"error: {path}: {error}")
    data, classes = split(table), table.classes
    ranges = zip(table.features, data.rows.min(axis=0), data.rows.max(axis=0), strict=True)
    features = [artifact.Feature(f.name, round(float(a), 3), round(float(b), 3), f.values) for f, a, b in ranges]
    contract = artifact.Input(dtype="float32", shape=[len(features)], features=features)
    with trial.Trial(args, model=path.stem, input=contract, classes=classes, data=data) as run:
        everything = np.arange(len(data.rows))
        shares = [np.delete(everything, fold) for fold in data.held] + [everything] * (data.estimator == "cv")
        learners = [Learner(args, contract, table._replace(rows=data.rows[s], labels=data.labels[s])) for s in shares]
        widths = [learners[0].rows.shape[1], *[args.units] * args.layers, len(classes)]
        if any(start := run.warm_start(list(itertools.pairwise(widths)))):
            for learner in learners:
                learner.begin(start)
        if run.state:
            for number, learner in enumerate(learners):
                learner.restore(run.state[str(number)])
        for _ in run.epochs():
            for learner in learners:
                learner.epoch()
            *folds, model = (learner.onnx() for learner in learners)
            state = {str(number): learner.state() for number, learner in enumerate(learners)}
            known = artifact.predict(model, data.rows[shares[-1]])
            loss = artifact.score(known, data.labels[shares[-1]], "holdout").loss
            run.report(loss=loss, model=model, folds=folds, state=state)


if __name__ == "__main__":
    main()
