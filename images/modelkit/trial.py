"""The loop around a trainer: what it prints, when it stops, what it keeps and what it offers.

parser = trial.argument_parser(__doc__)
parser.add_argument("--units", type=int, required=True)
args = parser.parse_args()
with trial.Trial(args, model="iris", input=..., classes=..., data=trial.Data(x, y, [held])) as t:
    for _ in t.epochs():
        ...                                     # train one epoch
        t.report(loss=loss, model=onnx_bytes, state={"weights": weights})
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import time
import types
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from modelkit import artifact, cpus, files, store
from modelkit.artifact import Array, Input, Scores

METRICS_FILE = "metrics.jsonl"
_CHECKPOINT = "checkpoint"
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "torch")
_LOCK_WAIT = 2.0  # seconds: an offer holds the lock while it adopts what this trial left before it was killed
_COLLECTOR_CAP = 30.0  # seconds to wait for Katib's metrics collector


class TrialError(Exception):
    """Why a trial can't go on."""


class Terminated(BaseException):
    """SIGTERM or Ctrl-C came: offer what there is and leave."""


class Data(msgspec.Struct, frozen=True):
    """What a trial learns from and is judged on: rows [N, *shape] and class indices [N].

    `held` has the indices of the rows that are held out: one part is a hold-out; several, which together are all rows,
    are the folds of a cross-validation. `test` (rows, class indices) chooses nothing.
    """

    rows: Array
    labels: Array
    held: list[Array]
    test: tuple[Array, Array] | None = None

    @property
    def estimator(self) -> Literal["holdout", "cv"]:
        return "holdout" if len(self.held) == 1 else "cv"

    @property
    def digest(self) -> str:
        """The sha256 of the rows, their labels, and how the metric is made of them. The test set isn't in it."""
        hasher = hashlib.sha256(f"accuracy by {self.estimator}".encode())
        for array in (self.rows, self.labels.astype(np.int64), *self.held):
            hasher.update(f"{array.dtype.str}{array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).data)
        return hasher.hexdigest()


class Epoch(msgspec.Struct, frozen=True):
    """One line of metrics.jsonl: training loss, then accuracy and cross-entropy on the validation split."""

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    seconds: float

    def better_than(self, other: "Epoch | None") -> bool:
        """More accurate, or as accurate at a lower validation loss: few rows make few different accuracies."""
        return other is None or (self.accuracy, -self.validation_loss) > (
            other.accuracy,
            -other.validation_loss,
        )


class _Checkpoint(msgspec.Struct):
    fingerprint: str
    epoch: int
    state: dict[str, tuple[str, list[int], bytes]]


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every trainer takes; `--export_path` is as good as `--export-path`. See `parse`."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = parser.add_argument_group("common to all trainers")
    common.add_argument("--epochs", type=at_least(1), default=50, help="at most this many (default: %(default)s)")
    common.add_argument(
        "--patience",
        type=at_least(1),
        default=5,
        help="stop after so many without improvement (default: %(default)s)",
    )
    common.add_argument("--seed", type=int, default=0, help="of everything random in training (default: %(default)s)")
    common.add_argument(
        "--export-path",
        type=Path,
        required=True,
        help="folder for the best model; STORE/MODEL/trials/EXPERIMENT/TRIAL offers it to that store at the end",
    )
    common.add_argument("--promotion", choices=["auto", "manual"], default="auto", help="manual: only record the offer")
    common.add_argument(
        "--min-improvement",
        type=float,
        default=0.0,
        help="gain in accuracy that promotion asks for (default: %(default)s)",
    )
    common.add_argument(
        "--significance",
        type=float,
        default=0.05,
        help="against another search's model: how often luck may promote a trial (default: %(default)s)",
    )
    common.add_argument("--data-digest", action="store_true", help="print the sha256 of the data and train nothing")
    return parser


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        if "--data-digest" in words:  # which says nothing about a network
            for action in self._actions:
                action.required = False
        return super().parse_known_args(words, namespace)


def _dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def at_least(lowest: int) -> Any:
    """A type of an argument: a whole number of that size or more."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
        return int(text)

    return number


class Trial:
    """One trial, as a context manager around the training loop.

    On leaving it scores the kept model on the test set, once, and offers it to the store; also on SIGTERM or Ctrl-C
    (exit status 143, 130). Errors a user can mend end the process with one line and status 1. With `--data-digest` the
    process ends here, so make it before anything that takes time.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        model: str,
        input: Input,  # noqa: A002 - the manifest's word
        classes: Sequence[str],
        data: Data,
    ) -> None:
        self._data_digest = data.digest
        if args.data_digest:
            print(f"sha256:{self._data_digest}")
            sys.exit(0)
        self.folder: Path = args.export_path
        self.state: dict[str, Array] | None = None
        self.history: list[Epoch] = []
        self.best: Epoch | None = None
        self._args, self._input, self._classes = args, input, list(classes)
        self._data = data
        self._parts = [(data.rows[part], data.labels[part]) for part in data.held]
        self._place = _Place.of(self.folder)
        self._model = self._place.model if self._place else model
        common = {"epochs", "patience", "seed", "export_path", "promotion", "min_improvement", "significance"}
        common.add("data_digest")
        self._parameters = {k: str(v) for k, v in vars(args).items() if k not in common}
        self._fingerprint = json.dumps([self._parameters, args.seed, self._data_digest], sort_keys=True)
        self._folds: list[bytes] = []
        self._started = time.monotonic()
        self._signal, self._saving = 0, False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Trial":
        with self._plain_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(files.locked(self.folder / ".lock", wait=_LOCK_WAIT))
            self._resume()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # what comes now is the last thing this process does
        with self._stack, self._plain_errors():
            if kind in (None, Terminated):
                self._finish()
            _await_collector()
            if isinstance(error, TrialError | artifact.ArtifactError | files.LockError | OSError):
                raise error
        if kind is Terminated:
            sys.exit(128 + self._signal)

    def epochs(self) -> Iterator[int]:
        """Epoch numbers from 1, or from where a killed trial left off, until `--epochs` or `--patience` says stop."""
        while len(self.history) < self._args.epochs and not self._out_of_patience():
            self._started = time.monotonic()
            before = len(self.history)
            yield before + 1
            if len(self.history) != before + 1:
                raise TrialError("the trainer didn't report its epoch: call report() once in each")

    def report(
        self,
        *,
        loss: float,
        model: bytes,
        folds: Sequence[bytes] = (),
        state: Mapping[str, Array] | None = None,
    ) -> None:
        """End an epoch: score the ONNX files, keep the best, save the checkpoint, print the line Katib reads.

        `loss` is the mean training cross-entropy; `folds` has a model per fold of a CrossValidation; `state` is all
        that training needs to go on. Raises TrialError or ArtifactError when a number isn't finite.
        """
        epoch = len(self.history) + 1
        if not math.isfinite(loss):
            raise TrialError(f"epoch {epoch}: the loss is {loss}; training diverged, a lower learning rate may help")
        scores, outcomes = self._score(model, folds)
        line = Epoch(epoch, float(loss), scores.accuracy, scores.loss, round(time.monotonic() - self._started, 3))
        self._saving = True  # SIGTERM waits until everything is in place
        improved = line.better_than(self.best)
        if improved:
            self._keep(model, line, scores, outcomes)
            self.best, self._folds = line, list(folds)
        with (self.folder / METRICS_FILE).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
        if state is not None:
            self._save_checkpoint(epoch, state)
        self.history.append(line)
        _print_line(line)
        self._saving = False
        if self._signal:
            raise Terminated

    # Inside

    def _score(self, model: bytes, folds: Sequence[bytes]) -> tuple[Scores, artifact.Outcomes]:
        """On the validation rows: a hold-out's by the model, each fold's by the model that never saw it."""
        models = [model] if len(self._parts) == 1 else folds
        probabilities = [artifact.predict(m, rows) for m, (rows, _) in zip(models, self._parts, strict=True)]
        labels = [part for _, part in self._parts]
        right = np.concatenate([p.argmax(axis=1) == y for p, y in zip(probabilities, labels, strict=True)])
        return artifact.score(probabilities, labels, self._data.estimator), artifact.Outcomes.of(right)

    def _keep(self, model: bytes, line: Epoch, scores: Scores, outcomes: artifact.Outcomes) -> None:
        place = self._place
        (self.folder / store.OFFERED).unlink(missing_ok=True)
        manifest = artifact.Manifest(
            model=self._model,
            digest=artifact.digest(model),
            size=len(model),
            input=self._input,
            classes=self._classes,
            metrics=artifact.Metrics(validation=scores),
            experiment=place.experiment if place else "",
            trial=place.trial if place else self.folder.name,
            parameters=self._parameters,
            seed=self._args.seed,
            epoch=line.epoch,
            epochs_run=line.epoch,
            data_digest=self._data_digest,
            outcomes=outcomes,
            image=os.environ.get("NAS_IMAGE", ""),
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        artifact.save(self.folder, model, manifest)

    def _finish(self) -> None:
        if self.best is None:
            return
        manifest, data = artifact.read(self.folder)
        kept = artifact.load(self.folder, manifest.digest)
        test = self._test_once(kept) if self._data.test else None
        metrics = artifact.Metrics(validation=manifest.metrics.validation, test=test)
        manifest = msgspec.structs.replace(manifest, metrics=metrics, epochs_run=len(self.history))
        artifact.save(self.folder, data, manifest)
        for index, fold in enumerate(self._folds):
            files.write(self.folder / f"fold-{index}.onnx", fold, durable=False)
        if not self._signal:
            (self.folder / _CHECKPOINT).unlink(missing_ok=True)
        tested = f", {test.accuracy:.4f} on the test set" if test else ""
        print(f"kept epoch {self.best.epoch}: accuracy {self.best.accuracy:.4f}{tested}", flush=True)
        if self._place:
            ground = store.Ground(self._data_digest, self._outcomes_of)
            gate = store.Gate(self._args.promotion, self._args.min_improvement, self._args.significance)
            event = store.Store(self._place.root, self._place.model).offer(self.folder, gate, ground)
            print(f"offered to the store: {event.event}, {event.reason}", flush=True)

    def _outcomes_of(self, model: artifact.Model) -> artifact.Outcomes:
        return artifact.Outcomes.of(np.concatenate([model.predict(x).argmax(axis=1) == y for x, y in self._parts]))

    def _test_once(self, kept: artifact.Model) -> Scores:
        assert self._data.test
        rows, labels = self._data.test
        probabilities = kept.predict(rows)
        evaluation = artifact.Evaluation.of(probabilities, rows, labels)
        files.write(self.folder / artifact.EVALUATION_FILE, msgspec.json.encode(evaluation), durable=False)
        return artifact.score([probabilities], [labels], "test")

    def _out_of_patience(self) -> bool:
        return self.best is not None and len(self.history) - self.best.epoch >= self._args.patience

    def _resume(self) -> None:
        """Go on from the checkpoint of the same trial, printing its epoch lines again: Katib lost them."""
        checkpoint = self._load_checkpoint()
        lines = []
        if checkpoint:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                text = (self.folder / METRICS_FILE).read_bytes()
                lines = [msgspec.json.decode(line, type=Epoch) for line in text.splitlines()[: checkpoint.epoch]]
        if not checkpoint or len(lines) != checkpoint.epoch:
            for name in (METRICS_FILE, _CHECKPOINT):
                (self.folder / name).unlink(missing_ok=True)
            return
        files.write(self.folder / METRICS_FILE, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        self.state = {
            name: np.frombuffer(data, dtype).reshape(shape).copy()
            for name, (dtype, shape, data) in checkpoint.state.items()
        }
        print(f"going on after epoch {checkpoint.epoch}", flush=True)
        for line in lines:
            self.history.append(line)
            self.best = line if line.better_than(self.best) else self.best
            _print_line(line)

    def _save_checkpoint(self, epoch: int, state: Mapping[str, Array]) -> None:
        packed = {k: (v.dtype.str, list(v.shape), v.tobytes()) for k, v in state.items()}
        data = msgspec.msgpack.encode(_Checkpoint(self._fingerprint, epoch, packed))
        files.write(self.folder / _CHECKPOINT, zlib.crc32(data).to_bytes(4, "big") + data, durable=False)

    def _load_checkpoint(self) -> _Checkpoint | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            data = (self.folder / _CHECKPOINT).read_bytes()
            if zlib.crc32(data[4:]) == int.from_bytes(data[:4], "big"):
                checkpoint = msgspec.msgpack.decode(data[4:], type=_Checkpoint)
                return checkpoint if checkpoint.fingerprint == self._fingerprint else None
        return None

    def _on_signal(self, number: int, _: types.FrameType | None) -> None:
        self._signal = number
        if not self._saving:
            raise Terminated

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (TrialError, store.StoreError, artifact.ArtifactError, files.LockError) as error:
            message = str(error)
        except OSError as error:
            message = store.explain(error, self.folder)
        else:
            return
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)


class _Place(msgspec.Struct, frozen=True):
    """Where in which store an export path lies."""

    root: Path
    model: str
    experiment: str
    trial: str

    @classmethod
    def of(cls, path: Path) -> "_Place | None":
        parts = path.absolute().parts
        if len(parts) < 5 or parts[-3] != "trials":
            return None
        return cls(root=Path(*parts[:-4]), model=parts[-4], experiment=parts[-2], trial=parts[-1])


def _print_line(line: Epoch) -> None:
    print(f"epoch={line.epoch} loss={line.loss!r} accuracy={line.accuracy!r}", flush=True)


def _versions() -> dict[str, str]:
    # With other threads the sums are other in their last digits, and so is the model.
    versions = {"python": platform.python_version(), "threads": str(cpus())}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _await_collector() -> None:
    """Under Katib, don't end before the metrics collector looks: it calls a trial it never saw Failed."""
    if not os.environ.get("KATIB_TRIAL_NAME") or not Path("/var/log/katib").exists():
        return
    deadline = time.monotonic() + _COLLECTOR_CAP
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"-s-db" in path.read_bytes().split(b"\0"):
                    return
        time.sleep(0.1)
