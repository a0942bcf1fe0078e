"""The loop around a trainer: what it prints, when it stops, what it keeps and what it offers.

parser = trial.argument_parser(__doc__)
parser.add_argument("--units", type=int, required=True)
args = parser.parse_args()
with trial.Trial(args, model="iris", input=..., classes=..., data=trial.Data(x, y, [held])) as t:
    for _ in t.epochs():
        ...                                     # train one epoch
        t.report(loss=loss, model=onnx_bytes, state={"weights": weights})
"""

# ruff: noqa: A002 - `input` is the manifest's word
import argparse
import contextlib
import datetime
import hashlib
import io
import json
import math
import os
import platform
import re
import signal
import sys
import time
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from modelkit import artifact, cpus, files, store
from modelkit.artifact import Array, Input, Scores

METRICS_FILE = "metrics.jsonl"
_CHECKPOINT, _PAST = "checkpoint.npz", ".past"
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "sklearn", "torch")
_SAMPLE = 256  # of the rows that were learned from: those of the smallest keys
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


def keys(rows: Array, labels: Array) -> npt.NDArray[np.uint64]:
    """A number for each row [N, *shape] with its label [N], which depends on nothing else and is as good as random."""
    data = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    words = np.pad(data, [(0, 0), (0, -data.shape[1] % 8)]).view(np.uint64)
    factors = np.random.default_rng(0).integers(2**64, size=words.shape[1], dtype=np.uint64) | np.uint64(1)
    mixed = np.einsum("nw,w->n", words, factors) + labels.astype(np.uint64)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # the mixing of splitmix64 (Steele et al., 2014)
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def held_out(rows: Array, labels: Array, parts: int, part: int = 0) -> Array:
    """Indices of the rows of one in `parts` parts: each is put into its part by its own content.

    So a row is never held out one day and learned from another, whatever rows come beside it.
    """
    return np.flatnonzero(keys(rows, labels) % np.uint64(parts) == part)


class Epoch(msgspec.Struct, frozen=True):
    """One line of metrics.jsonl: training loss, then accuracy and cross-entropy on the validation split."""

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    seconds: float


class Past(msgspec.Struct, frozen=True):
    """What a checkpoint holds beside the trainer's own state: whose it is, and what that trial did so far."""

    fingerprint: str
    warm_start: str
    epochs: list[Epoch]


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every trainer takes; `--export_path` is as good as `--export-path`.

    Help texts get their default at the end.
    """
    parser = _Parser(description=description, formatter_class=_Help, allow_abbrev=False)
    add = parser.add_argument_group("common to all trainers").add_argument
    add("--epochs", type=at_least(1), default=50, help="at most this many")
    add("--patience", type=at_least(1), default=5, help="stop after so many without improvement")
    add("--seed", type=int, default=0, help="of everything random in training")
    place = "folder for the best model; STORE/MODEL/trials/EXPERIMENT/TRIAL offers it to that store at the end"
    add("--export-path", type=Path, required=True, help=place)
    add("--promotion", choices=["auto", "manual"], default="auto", help="manual: only record the offer")
    add("--min-improvement", type=float, default=0.0, help="gain in accuracy that promotion asks for")
    luck = "against another search's model: how often luck may promote a trial"
    add("--significance", type=float, default=0.05, help=luck)
    weights = "begin from the current model's weights where they fit"
    add("--warm-start", nargs="?", const="true", choices=["true", "false"], default="false", help=weights)
    add("--data-digest", action="store_true", default=False, help="print the sha256 of the data and train nothing")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        untold = action.default in (None, "") or action.const is True
        return action.help if untold else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else args
        words = [re.sub("^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in given]
        if "--data-digest" in words:  # which says nothing about a network
            for action in self._actions:
                action.required = False
        return super().parse_known_args(words, namespace)


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
        self, args: argparse.Namespace, *, model: str, input: Input, classes: Sequence[str], data: Data
    ) -> None:
        self._data_digest = data.digest
        if args.data_digest:
            print(f"sha256:{self._data_digest}")
            sys.exit(0)
        self.folder: Path = args.export_path
        self.state: dict[str, Array] | None = None
        self.history: list[Epoch] = []
        self._args, self._data, self._input, self._classes = args, data, input, list(classes)
        path, self._store = self.folder.absolute(), None
        if path.parts[-3:-2] == ("trials",):  # STORE/MODEL/trials/EXPERIMENT/TRIAL
            with self._plain_errors():
                self._store = store.Store(path.parents[3], path.parts[-4])
        self._experiment = path.parts[-2] if self._store else ""
        self._model = self._store.model if self._store else model
        common = vars(argument_parser(None).parse_args([f"--export-path={self.folder}"]))
        self._parameters = {k: str(v) for k, v in vars(args).items() if k not in common}
        known, held = keys(data.rows, data.labels), np.concatenate(data.held)
        self._held, self._held_rows, self._held_labels = known[held], data.rows[held], data.labels[held]
        learned = np.delete(known, data.held[0]) if data.estimator == "holdout" else known
        self._learned = np.sort(learned)[:_SAMPLE].tobytes()
        self._warm_start = ""
        self._fingerprint = json.dumps([self._parameters, args.seed, self._data_digest], sort_keys=True)
        self._started = time.monotonic()
        self._signal, self._saving = 0, False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Trial":
        with self._plain_errors():
            if not len(self._held) or not self._learned:
                raise TrialError("the data has too few different rows: some must be learned from and others held out")
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
            elif kind in (TrialError, artifact.ArtifactError) and self.best and self._store:
                # The search counts the trial as failed, so its best epoch isn't to be adopted as a killed trial's is.
                self._store.refuse(self.folder, f"its trial failed: {error}")
            _await_collector()
            if isinstance(error, TrialError | artifact.ArtifactError | files.LockError | OSError):
                raise error
        if kind is Terminated:
            sys.exit(128 + self._signal)

    @property
    def best(self) -> Epoch | None:
        """The most accurate epoch, at the lowest validation loss: few rows make few different accuracies."""
        return max(self.history, key=lambda line: (line.accuracy, -line.validation_loss), default=None)

    def epochs(self) -> Iterator[int]:
        """Epoch numbers from 1, or from where a killed trial left off, until `--epochs` or `--patience` says stop."""
        while len(self.history) < min(self._args.epochs, (self.best.epoch if self.best else 0) + self._args.patience):
            self._started = time.monotonic()
            before = len(self.history)
            yield before + 1
            if len(self.history) != before + 1:
                raise TrialError("the trainer didn't report its epoch: call report() once in each")

    def warm_start(self, shapes: Sequence[tuple[int, int]]) -> list[artifact.Layer | None]:
        """For layers of these shapes [in, out] the weights and biases to begin from, None where they are to be random.

        With `--warm-start` they are those of the current model, of the last one before this search, in layers whose
        shapes match; not if it learned from rows that are held out here, whose accuracy would then be an illusion.
        """
        nothing: list[artifact.Layer | None] = [None] * len(shapes)
        if self._args.warm_start == "false" or not self._store or self.state is not None:
            return nothing
        try:
            line = [entry for entry in self._store.lineage() if not isinstance(entry, str)]
        except (store.StoreError, artifact.ArtifactError):  # none yet, or a damaged one, which this trial's offer mends
            return nothing
        earlier = [entry for entry in line if entry.manifest.experiment != self._experiment]
        seen = self._seen_by(earlier[0].manifest) if earlier else None
        if seen != 0:
            why = "it learned from rows held out here" if seen else "none known"
            print(f"not begun from the current model: {why}")
            return nothing
        layers = [*artifact.layers(artifact.read(earlier[0].folder)[1]), *nothing]
        begun = [a if a and a[0].shape == shape else None for a, shape in zip(layers, shapes, strict=False)]
        digest = earlier[0].manifest.digest
        self._warm_start = digest if any(begun) else ""
        print(f"{sum(map(bool, begun))} of {len(shapes)} layers begun from {digest[:12]}", flush=True)
        return begun

    def report(
        self, *, loss: float, model: bytes, folds: Sequence[bytes] = (), state: Mapping[str, Array] | None = None
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
        self.history.append(line)
        if self.best is line:
            self._keep(model, line, scores, outcomes)
        self._write_metrics()
        if state is not None:
            self._save_checkpoint(state)
        _print_line(line)
        self._saving = False
        if self._signal:
            raise Terminated

    # Inside

    def _score(self, model: bytes, folds: Sequence[bytes]) -> tuple[Scores, artifact.Outcomes]:
        """On the validation rows: a hold-out's by the model, each fold's by the model that never saw it."""
        parts = zip([model] if self._data.estimator == "holdout" else folds, self._data.held, strict=True)
        probabilities = np.concatenate([artifact.predict(one, self._data.rows[held]) for one, held in parts])
        scores = artifact.score(probabilities, self._held_labels, self._data.estimator)
        return scores, artifact.Outcomes.of(probabilities.argmax(axis=1) == self._held_labels)

    def _keep(self, model: bytes, line: Epoch, scores: Scores, outcomes: artifact.Outcomes) -> None:
        (self.folder / store.OFFERED).unlink(missing_ok=True)
        manifest = artifact.Manifest(
            model=self._model,
            digest=artifact.digest(model),
            size=len(model),
            input=self._input,
            classes=self._classes,
            metrics=artifact.Metrics(validation=scores),
            experiment=self._experiment,
            trial=self.folder.name,
            parameters=self._parameters,
            seed=self._args.seed,
            epoch=line.epoch,
            epochs_run=line.epoch,
            data_digest=self._data_digest,
            outcomes=outcomes,
            learned=self._learned,
            gate=artifact.Gate(self._args.promotion, self._args.min_improvement, self._args.significance),
            warm_start=self._warm_start or None,
            image=os.environ.get("NAS_IMAGE", ""),
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        artifact.save(self.folder, model, manifest)

    def _finish(self) -> None:
        if self.best is None:
            return
        manifest, data = artifact.read(self.folder)
        test = self._test_once(data, *self._data.test) if self._data.test else None
        metrics = artifact.Metrics(validation=manifest.metrics.validation, test=test)
        manifest = msgspec.structs.replace(manifest, metrics=metrics, epochs_run=len(self.history))
        artifact.save(self.folder, data, manifest)
        if not self._signal:
            (self.folder / _CHECKPOINT).unlink(missing_ok=True)
        tested = f", {test.accuracy:.4f} on the test set" if test else ""
        print(f"kept epoch {self.best.epoch}: accuracy {self.best.accuracy:.4f}{tested}", flush=True)
        if self._store:
            ground = store.Ground(self._data_digest, self._outcomes_of, self._seen_by)
            event = self._store.offer(self.folder, ground)
            print(f"offered to the store: {event.event}, {event.reason}", flush=True)

    def _outcomes_of(self, model: artifact.Model) -> artifact.Outcomes:
        return artifact.Outcomes.of(model.predict(self._held_rows).argmax(axis=1) == self._held_labels)

    def _seen_by(self, manifest: artifact.Manifest) -> float | None:
        """The share of the validation rows that a model learned from, estimated from the sample in its manifest."""
        sample = np.frombuffer(manifest.learned, np.uint64)
        if not len(sample):
            return None
        held = self._held[self._held <= sample[-1]] if len(sample) == _SAMPLE else self._held
        return float(np.isin(held, sample).mean()) if len(held) else 0.0

    def _test_once(self, model: bytes, rows: Array, labels: Array) -> Scores:
        probabilities = artifact.predict(model, rows)
        evaluation = artifact.Evaluation.of(probabilities, rows, labels)
        files.write(self.folder / artifact.EVALUATION_FILE, msgspec.json.encode(evaluation), durable=False)
        return artifact.score(probabilities, labels, "test")

    def _resume(self) -> None:
        """Go on from the checkpoint of the same trial, printing its epoch lines again: Katib lost them."""
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile, msgspec.DecodeError):
            with np.load(self.folder / _CHECKPOINT, allow_pickle=False) as saved:
                state = dict(saved)
            past = msgspec.json.decode(str(state.pop(_PAST)), type=Past)
            if past.fingerprint == self._fingerprint:
                self.state, self._warm_start, self.history = state, past.warm_start, past.epochs
                print(f"going on after epoch {len(self.history)}", flush=True)
        for line in self.history:
            _print_line(line)
        self._write_metrics()

    def _write_metrics(self) -> None:
        files.write(self.folder / METRICS_FILE, msgspec.json.Encoder().encode_lines(self.history), durable=False)

    def _save_checkpoint(self, state: Mapping[str, Any]) -> None:
        past = msgspec.json.encode(Past(self._fingerprint, self._warm_start, self.history)).decode()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{**state, _PAST: past})
        files.write(self.folder / _CHECKPOINT, buffer.getvalue(), durable=False)

    def _on_signal(self, number: int, _: types.FrameType | None) -> None:
        self._signal = number
        if not self._saving:
            raise Terminated

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (TrialError, store.StoreError, artifact.ArtifactError, files.LockError, OSError) as error:
            sys.exit(f"error: {store.explain(error, self.folder)}")


def _print_line(line: Epoch) -> None:
    # Katib orders what it read by the time that a line begins with; without one it takes the same for all.
    stamp = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ} " if "KATIB_TRIAL_NAME" in os.environ else ""
    print(f"{stamp}epoch={line.epoch} loss={line.loss!r} accuracy={line.accuracy!r}", flush=True)


def _versions() -> dict[str, str]:
    # With other threads the sums are other in their last digits, and so is the model.
    libraries = {name: str(module.__version__) for name in _LIBRARIES if (module := sys.modules.get(name))}
    return {"python": platform.python_version(), "threads": str(cpus())} | libraries


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
