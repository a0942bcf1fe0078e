"""Train a multi-layer perceptron on Iris, epoch by epoch, and keep its best epoch.

scikit-learn's MLPClassifier goes on from its own weights and optimiser state with every `partial_fit`. 120 rows are
too few to set some aside, so a model per stratified fold and one on all training rows train in lockstep: an epoch's
accuracy is that of all held-out predictions together, and the all-rows model of the best epoch is kept. The other
30 rows are the test set: no choice depends on them.

Example: python3 train.py --layers=2 --units=16 --lr=0.01 --export-path=best
"""

from pathlib import Path
from typing import Any, NamedTuple

from modelkit import artifact, trial  # isort: skip - before numpy: it settles the number of threads

import numpy as np
import sklearn
from sklearn.neural_network import MLPClassifier

CLASSES = ["setosa", "versicolor", "virginica"]
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
SPLIT_SEED = 0  # the splits belong to the data, not to the trial, so that trials and searches compare
FOLDS = 5
sklearn.set_config(assume_finite=True, skip_parameter_validation=True)  # the checks take longer than the training


class Learner:
    """One MLPClassifier on `rows` [N, 4] and `labels` [N], standardised; an epoch at a time."""

    def __init__(self, args: Any, rows: artifact.Array, labels: artifact.Array) -> None:
        self.offset, self.scale = rows.mean(axis=0), 1 / rows.std(axis=0)
        self.rows, self.labels = (rows - self.offset) * self.scale, labels
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

    def epoch(self) -> None:
        try:
            self.network.partial_fit(self.rows, self.labels, classes=range(len(CLASSES)))
        except ValueError as error:  # scikit-learn's word for weights that aren't finite
            raise trial.TrialError(f"training diverged, a lower --lr may help: {error}") from error

    def onnx(self, contract: artifact.Input) -> bytes:
        layers = list(zip(self.network.coefs_, self.network.intercepts_, strict=True))
        return artifact.mlp(layers, self.network.activation, contract, CLASSES, self.offset, self.scale)

    def _tensors(self) -> list[artifact.Array]:
        adam = self.network._optimizer
        return [*self.network.coefs_, *self.network.intercepts_, *adam.ms, *adam.vs]

    def state(self) -> dict[str, artifact.Array]:
        """All that the next epoch depends on."""
        generator = self.random.get_state(legacy=False)["state"]
        counters = np.array([generator["pos"], self.network._optimizer.t])
        tensors = np.concatenate([tensor.ravel() for tensor in self._tensors()])
        return {"tensors": tensors, "key": generator["key"], "counters": counters}

    def restore(self, state: dict[str, artifact.Array]) -> None:
        self.epoch()  # builds the network and the optimiser, whose numbers are then replaced
        tensors = self._tensors()
        parts = np.split(state["tensors"], np.cumsum([tensor.size for tensor in tensors])[:-1])
        for tensor, saved in zip(tensors, parts, strict=True):
            tensor[...] = saved.reshape(tensor.shape)
        position, self.network._optimizer.t = (int(number) for number in state["counters"])
        self.random.set_state({"bit_generator": "MT19937", "state": {"key": state["key"], "pos": position}})


def stratified(labels: artifact.Array, parts: int) -> list[artifact.Array]:
    """Indices of `parts` disjoint parts of the rows, each with every class's share."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[part::parts]) for part in range(parts)]


class Split(NamedTuple):
    """Iris taken apart: training rows [120, 4] and labels with the indices of each fold, and the test set."""

    rows: artifact.Array
    labels: artifact.Array
    folds: list[artifact.Array]
    test_rows: artifact.Array
    test_labels: artifact.Array

    @classmethod
    def of(cls, table: artifact.Array) -> "Split":
        rows, labels = table[:, :-1].astype(np.float32), table[:, -1].astype(np.int64)
        test, *_ = stratified(labels, 5)
        train = np.setdiff1d(np.arange(len(table)), test)
        return cls(rows[train], labels[train], stratified(labels[train], FOLDS), rows[test], labels[test])


def read_table() -> artifact.Array:
    """scikit-learn's copy of Iris [150, 5]: features, then the class. Its loader alone would take 0.1 s to import."""
    return np.loadtxt(Path(sklearn.__file__).parent / "datasets/data/iris.csv", delimiter=",", skiprows=1)


def main() -> None:
    parser = trial.argument_parser(__doc__)
    parser.add_argument("--layers", type=int, required=True, help="hidden layers")
    parser.add_argument("--units", type=int, required=True, help="units in each hidden layer")
    parser.add_argument("--lr", type=float, required=True, help="Adam's learning rate")
    parser.add_argument("--activation", choices=list(artifact.ACTIVATIONS), default="tanh", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a step (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=1e-3, help="L2 penalty (default: %(default)s)")
    args = parser.parse_args()

    split = Split.of(read_table())
    ranges = zip(FEATURES, split.rows.min(axis=0), split.rows.max(axis=0), strict=True)
    features = [artifact.Feature(name, round(float(low), 3), round(float(high), 3)) for name, low, high in ranges]
    contract = artifact.Input(dtype="float32", shape=[len(FEATURES)], features=features)

    shares = [np.delete(np.arange(len(split.rows)), fold) for fold in split.folds]
    learners = [Learner(args, split.rows[share], split.labels[share]) for share in shares]
    learners.append(Learner(args, split.rows, split.labels))

    with trial.Trial(
        args,
        model="iris",
        input=contract,
        classes=CLASSES,
        validation=trial.CrossValidation(split.rows, split.labels, split.folds),
        test=(split.test_rows, split.test_labels),
    ) as run:
        if run.state:
            for number, learner in enumerate(learners):
                learner.restore({name: run.state[f"{number}.{name}"] for name in ("tensors", "key", "counters")})
        for _ in run.epochs():
            for learner in learners:
                learner.epoch()
            *fold_models, model = (learner.onnx(contract) for learner in learners)
            loss = artifact.score([artifact.predict(model, split.rows)], [split.labels], "holdout").loss
            state = {f"{n}.{name}": a for n, learner in enumerate(learners) for name, a in learner.state().items()}
            run.report(loss=loss, model=model, folds=fold_models, state=state)


if __name__ == "__main__":
    main()
