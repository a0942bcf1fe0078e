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
at least STEPS steps: after one pass over 100 rows an accuracy is luck, and the luckiest epoch would be kept.

What makes few rows go far: columns are made uncorrelated by their covariance within the classes, so that the L2
penalty shrinks towards linear discriminant analysis instead of towards the accidents of scale; and what is kept is a
moving average of the weights over the passes, without the noise of the last steps.

Example: python3 train.py --layers=2 --units=16 --lr=0.01 --export-path=best
"""

import csv
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from modelkit import artifact, trial  # isort: skip - before numpy: it settles the number of threads

import numpy as np
import sklearn
from sklearn.neural_network import MLPClassifier

SPLIT_SEED = 0  # the splits belong to the data, not to the trial, so that trials and searches compare
TEST = HOLDOUT = 5  # one row in so many
FOLDS = 5
STEPS = 120  # an epoch takes at least so many, over a small table in several passes
MANY = 2000  # rows from which a hold-out is enough
SHRINKAGE = 0.1  # of the correlations within classes, of which few rows know little
AVERAGE = 0.8  # decay of the moving average, each pass
sklearn.set_config(assume_finite=True, skip_parameter_validation=True)  # the checks take longer than the training


class Table(NamedTuple):
    """Rows float32 [N, features] as the model takes them, class indices int64 [N], and what they stand for."""

    rows: artifact.Array
    labels: artifact.Array
    features: list[artifact.Feature]
    classes: list[str]


def read_iris() -> Table:
    """scikit-learn's copy. Its loader alone would take 0.1 s to import."""
    path = Path(sklearn.__file__).parent / "datasets/data/iris.csv"
    cells = np.loadtxt(path, delimiter=",", skiprows=1)
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    features = [artifact.Feature(name, 0, 0) for name in names]
    return Table(
        cells[:, :-1].astype(np.float32), cells[:, -1].astype(np.int64), features, ["setosa", "versicolor", "virginica"]
    )


def read_csv(path: Path, target: str, columns: str) -> Table:
    """A CSV file; `columns` is NAME or NAME:category, comma-separated, empty for all but the target as numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        sys.exit(f"error: {path} can't be read as CSV: {error}")
    asked = dict(word.partition(":")[::2] for word in columns.split(",") if word)
    kinds = asked or {name: "" for name in header if name != target}
    for name in [target, *kinds]:
        if name not in header:
            sys.exit(f"error: {path} has no column {name!r}; it has: {', '.join(header)}")
    if unknown := set(kinds.values()) - {"", "number", "category"}:
        sys.exit(f"error: --columns: {unknown.pop()!r} is neither number nor category")
    at = {name: header.index(name) for name in [target, *kinds]}
    if short := next((i for i, line in enumerate(lines, 2) if len(line) != len(header)), 0):
        sys.exit(f"error: {path} line {short}: expected {len(header)} cells as in its header")
    features = []
    for name, kind in kinds.items():
        values = sorted({line[at[name]] for line in lines}) if kind == "category" else None
        features.append(artifact.Feature(name, 0, 0, values))
    rows = np.empty((len(lines), len(features)), np.float32)
    for i, line in enumerate(lines):
        for j, feature in enumerate(features):
            try:
                rows[i, j] = feature.number(line[at[feature.name]])
            except ValueError as error:
                sys.exit(f"error: {path} line {i + 2}: {error}")
    classes = sorted({line[at[target]] for line in lines})
    labels = np.array([classes.index(line[at[target]]) for line in lines], np.int64)
    smallest = np.bincount(labels, minlength=2).min()
    if smallest < 2 * FOLDS:
        sys.exit(f"error: {path}: {target} needs two classes or more, each with at least {2 * FOLDS} rows")
    return Table(rows, labels, features, classes)


def stratified(labels: artifact.Array, parts: int, seed: int = SPLIT_SEED) -> list[artifact.Array]:
    """Indices of `parts` disjoint parts of the rows, each with every class's share."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[part::parts]) for part in range(parts)]


class Split(NamedTuple):
    """A table taken apart: training rows and labels, how they are validated, and the test set.

    `folds` are indices of held-out training rows: all of them in FOLDS parts, or one hold-out.
    """

    rows: artifact.Array
    labels: artifact.Array
    folds: list[artifact.Array]
    test_rows: artifact.Array
    test_labels: artifact.Array

    @classmethod
    def of(cls, table: Table) -> "Split":
        test, *_ = stratified(table.labels, TEST)
        train = np.setdiff1d(np.arange(len(table.rows)), test)
        rows, labels = table.rows[train], table.labels[train]
        folds = stratified(labels, FOLDS) if len(train) < MANY else stratified(labels, HOLDOUT)[:1]
        return cls(rows, labels, folds, table.rows[test], table.labels[test])


class Learner:
    """One MLPClassifier on `rows` [N, features] and `labels` [N]; an epoch at a time."""

    def __init__(
        self,
        args: Namespace,
        contract: artifact.Input,
        classes: list[str],
        rows: artifact.Array,
        labels: artifact.Array,
    ) -> None:
        self.contract, self.classes = contract, classes
        wide = artifact.widened(rows, contract).astype(np.float64)
        self.offset = wide.mean(axis=0)
        self.whitening = _whitening(wide, labels)
        self.rows, self.labels = (wide - self.offset) @ self.whitening, labels
        # A RandomState goes on from epoch to epoch; with a number, every partial_fit would shuffle alike.
        self.random = np.random.RandomState(args.seed)
        self.network = MLPClassifier(
            hidden_layer_sizes=(args.units,) * args.layers,
            activation=args.activation,
            learning_rate_init=args.lr,
            batch_size=args.batch_size,
            alpha=args.alpha,
            random_state=self.random,
        )
        self.average: list[artifact.Array] = []
        self.passes = -(-STEPS * args.batch_size // len(rows))
        self.done = 0  # passes

    def epoch(self) -> None:
        for _ in range(self.passes):
            try:
                self.network.partial_fit(self.rows, self.labels, classes=range(len(self.classes)))
            except ValueError as error:  # scikit-learn's word for weights that aren't finite
                raise trial.TrialError(f"training diverged, a lower --lr may help: {error}") from error
            # The average starts short, so that it isn't held back by the random beginning.
            keep = min(AVERAGE, self.done / (self.done + 2))
            weights = [*self.network.coefs_, *self.network.intercepts_]
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

    def _tensors(self) -> list[artifact.Array]:
        adam = self.network._optimizer
        return [*self.network.coefs_, *self.network.intercepts_, *adam.ms, *adam.vs, *self.average]

    def state(self) -> dict[str, artifact.Array]:
        """All that the next epoch depends on."""
        generator = self.random.get_state(legacy=False)["state"]
        counters = np.array([generator["pos"], self.network._optimizer.t, self.done])
        tensors = np.concatenate([tensor.ravel() for tensor in self._tensors()])
        return {"tensors": tensors, "key": generator["key"], "counters": counters}

    def restore(self, state: dict[str, artifact.Array]) -> None:
        self.epoch()  # builds the network and the optimiser, whose numbers are then replaced
        tensors = self._tensors()
        parts = np.split(state["tensors"], np.cumsum([tensor.size for tensor in tensors])[:-1])
        for tensor, saved in zip(tensors, parts, strict=True):
            tensor[...] = saved.reshape(tensor.shape)
        position, self.network._optimizer.t, self.done = (int(number) for number in state["counters"])
        self.random.set_state({"bit_generator": "MT19937", "state": {"key": state["key"], "pos": position}})


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
    parser.add_argument("--layers", type=trial.at_least(1), required=True, help="hidden layers")
    parser.add_argument("--units", type=trial.at_least(1), required=True, help="units in each hidden layer")
    parser.add_argument("--lr", type=float, required=True, help="Adam's learning rate")
    parser.add_argument("--activation", choices=list(artifact.ACTIVATIONS), default="relu", help="default: %(default)s")
    parser.add_argument("--batch-size", type=trial.at_least(1), default=8, help="rows in a step (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.5, help="L2 penalty (default: %(default)s)")
    parser.add_argument("--data", default="iris", help="a CSV file, in $NAS_DATA if relative (default: Iris)")
    parser.add_argument("--target", default="", help="the CSV file's column with the classes")
    parser.add_argument("--columns", default="", help="those to learn from: NAME or NAME:category,… (default: all)")
    args = parser.parse_args(words)
    if args.data != "iris" and not args.target:
        parser.error("--data needs --target, the column with the classes")
    return args


def read(args: Namespace) -> Table:
    if args.data == "iris":
        return read_iris()
    return read_csv(Path(os.environ.get("NAS_DATA", "/data")) / args.data, args.target, args.columns)


def main() -> None:
    args = arguments()
    table = read(args)
    split, classes = Split.of(table), table.classes
    ranges = zip(table.features, split.rows.min(axis=0), split.rows.max(axis=0), strict=True)
    features = [artifact.Feature(f.name, round(float(a), 3), round(float(b), 3), f.values) for f, a, b in ranges]
    contract = artifact.Input(dtype="float32", shape=[len(features)], features=features)

    data = trial.Data(split.rows, split.labels, split.folds, (split.test_rows, split.test_labels))
    name = "iris" if args.data == "iris" else Path(args.data).stem
    with trial.Trial(args, model=name, input=contract, classes=classes, data=data) as run:
        shares = [np.delete(np.arange(len(split.rows)), fold) for fold in split.folds]
        if len(shares) > 1:
            shares.append(np.arange(len(split.rows)))
        learners = [Learner(args, contract, classes, split.rows[share], split.labels[share]) for share in shares]
        if run.state:
            for number, learner in enumerate(learners):
                learner.restore({name: run.state[f"{number}.{name}"] for name in ("tensors", "key", "counters")})
        for _ in run.epochs():
            for learner in learners:
                learner.epoch()
            *folds, model = (learner.onnx() for learner in learners)
            state = {f"{n}.{name}": a for n, learner in enumerate(learners) for name, a in learner.state().items()}
            known = artifact.predict(model, split.rows[shares[-1]])
            loss = artifact.score([known], [split.labels[shares[-1]]], "holdout").loss
            run.report(loss=loss, model=model, folds=folds, state=state)


if __name__ == "__main__":
    main()
