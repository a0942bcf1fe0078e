"""A model as it is kept, moved and served: `model.onnx` and the `manifest.json` beside it.

Loading a model never runs code from it: no pickle, operators from an allow-list only, no second file, a size
cap, and a digest checked on the very bytes the session is built from.
"""

# ruff: noqa: A002 - `input` is the manifest's word
import contextlib
import functools
import hashlib
import importlib.util
import math
import types
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from modelkit import files

MODEL_FILE, MANIFEST_FILE = "model.onnx", "manifest.json"
EVALUATION_FILE = "evaluation.json"  # in a trial's folder, beside them
SCHEMA_VERSION = 1
SIZE_CAP = 256 * 2**20  # bytes
FLOAT32_MAX = float(np.finfo(np.float32).max)
OPERATORS = {"Cast", "Gather", "Equal", "Concat", "Sub", "Mul", "Gemm", "Relu", "Tanh", "Sigmoid", "Softmax"}
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": None}
CONTRACT = "nas.contract"  # a metadata key of model.onnx
_NEXT = ".manifest.next"
_OPSET, _IR_VERSION = 17, 8

Array = npt.NDArray[Any]
Layer = tuple[Array, Array]  # weights [in, out] and bias [out]
Estimator = Literal["holdout", "cv", "test"]


class ArtifactError(Exception):
    """A model that can't be trusted or used; the message says which and why."""


class Feature(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column of a table, with the range seen in training; `values` are a category's, by their numbers."""

    name: str
    min: float
    max: float
    values: list[str] | None = None

    def number(self, cell: object) -> float:
        """A cell as the model takes it: a finite float32 or a category's index. Raises ValueError."""
        with contextlib.suppress(ValueError):
            if self.values is not None:
                return float(self.values.index(str(cell)))
            if abs(number := float(str(cell))) <= FLOAT32_MAX:
                return number
        raise ValueError(self.refusal(cell))

    def refusal(self, cell: object) -> str:
        """What to tell of a cell that the model can't take."""
        expected = "a finite number" if self.values is None else f"one of {', '.join(self.values)}"
        return f"{self.name} is {str(cell)[:40]!r}, expected {expected}"


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model takes: rows of `shape`, of `dtype`; an `image`'s height and width, or a table's `features`."""

    dtype: Literal["uint8", "float32"]
    shape: list[int]
    name: str = "input"
    image: list[int] | None = None
    features: list[Feature] | None = None

    @property
    def contract(self) -> tuple[object, ...]:
        """What a caller relies on: all but the ranges that training happened to see."""
        return self.dtype, self.shape, self.image, [(f.name, f.values) for f in self.features or []]

    def no_category(self, table: Array) -> npt.NDArray[np.bool_]:
        """Which numbers of a table [N, values] stand for no category of their feature."""
        wrong = np.zeros(table.shape, bool)
        for j, feature in enumerate(self.features or []):
            if feature.values is not None:
                wrong[:, j] = ~np.isin(table[:, j], np.arange(len(feature.values)))
        return wrong


class Contract(msgspec.Struct, frozen=True):
    """What callers rely on. It is inside model.onnx, so that the digest covers it."""

    input: Input
    classes: list[str]


class Scores(msgspec.Struct, frozen=True, omit_defaults=True):
    """Accuracy (0 to 1) and mean cross-entropy (nats) over `rows` rows; `estimator` says how they were set apart."""

    accuracy: float
    loss: float
    rows: int
    estimator: Estimator


class Metrics(msgspec.Struct, frozen=True):
    """Scores of the saved epoch. The test set is scored once, at the trial's end: None before."""

    validation: Scores
    test: Scores | None = None


class Outcomes(msgspec.Struct, frozen=True):
    """Which of `rows` validation rows a model gets right: a bit a row in their order, eight in a byte."""

    rows: int
    right: bytes

    @classmethod
    def of(cls, right: Array) -> "Outcomes":
        """From booleans [N]."""
        return cls(len(right), np.packbits(right).tobytes())

    @property
    def accuracy(self) -> float:
        """The share of rows that are right."""
        return int(self._bits().sum()) / self.rows

    def chance(self, other: "Outcomes") -> float:
        """How often models that are equally good differ by so much in this one's favour.

        McNemar's exact test (1947), one-sided. Only rows on which one is right and the other wrong tell them apart; if
        neither is better, each of these falls to either with probability 1/2. Raises ArtifactError when the rows aren't
        the same.
        """
        if self.rows != other.rows:
            raise ArtifactError(f"outcomes on {self.rows} and on {other.rows} rows can't be compared")
        mine, theirs = self._bits(), other._bits()
        won, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
        apart, tail, ways = won + lost, 0, math.comb(won + lost, won)
        for wins in range(won, apart + 1):
            tail += ways
            ways = ways * (apart - wins) // (wins + 1)
        return float(tail / 2**apart)

    def _bits(self) -> npt.NDArray[np.bool_]:
        return np.unpackbits(np.frombuffer(self.right, np.uint8), count=self.rows).astype(bool)


class Mistake(msgspec.Struct, frozen=True):
    """A test row that a model takes for another class: class indices, and the probability it gave the wrong one."""

    row: list[float]
    label: int
    predicted: int
    probability: float


class Evaluation(msgspec.Struct, frozen=True):
    """What the test set showed, for a report: counts by [label][prediction], and the surest mistakes, surest first."""

    confusion: list[list[int]]
    mistakes: list[Mistake]

    @classmethod
    def of(cls, probabilities: Array, rows: Array, labels: Array, most: int = 24) -> "Evaluation":
        """From predictions [N, classes] for `rows` [N, *shape] with class indices `labels` [N]."""
        classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
        confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
        sure = probabilities.max(axis=1)
        wrong = np.flatnonzero(predicted != labels)
        worst = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
        mistakes = [
            Mistake(rows[i].ravel().tolist(), int(labels[i]), int(predicted[i]), round(float(sure[i]), 4))
            for i in worst
        ]
        return cls(confusion.tolist(), mistakes)


class Gate(msgspec.Struct, frozen=True):
    """What a challenger must show to become current.

    A gain in accuracy of at least `min_improvement` (0 to 1) on the same rows; against the model of another search also
    that chance gives such a gain at most so often as `significance` says (1: any gain will do). Policy `manual` leaves
    it to a person.
    """

    policy: Literal["auto", "manual"] = "auto"
    min_improvement: float = 0.0
    significance: float = 0.05


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a model comes from and what it needs. `digest` is the sha256 of model.onnx, `size` its bytes.

    `learned` is a sample of the rows it was trained on, by their keys; `warm_start` the digest it began from.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    digest: str
    size: int
    input: Input
    classes: list[str]
    metrics: Metrics
    experiment: str
    trial: str
    parameters: dict[str, str]
    seed: int
    epoch: int
    epochs_run: int
    data_digest: str
    outcomes: Outcomes
    learned: bytes = b""
    gate: Gate | None = None
    warm_start: str | None = None
    image: str = ""
    versions: dict[str, str]
    created: str
    parent: str | None = None


class Model:
    """A verified model, ready to predict."""

    def __init__(self, manifest: Manifest, data: bytes, threads: int) -> None:
        self.manifest = manifest
        self._session = _session(data, threads)
        self._outputs = [output.name for output in self._session.get_outputs()]  # asked anew by each run(None)

    def predict(self, rows: Array) -> npt.NDArray[np.float32]:
        """Probabilities [N, classes] for rows [N, *shape] of the input's dtype. Thread-safe."""
        return np.asarray(self._session.run(self._outputs, {self.manifest.input.name: rows})[0])

    def check_answer(self) -> None:
        """Raise ArtifactError unless a row within the input's ranges is answered by probabilities of its classes."""
        takes, classes = self.manifest.input, self.manifest.classes
        row = np.array([(f.min + f.max) / 2 for f in takes.features or []] or np.zeros(takes.shape), takes.dtype)
        try:
            answer = self.predict(row.reshape(1, *takes.shape))
        except Exception as error:  # onnxruntime's exceptions share no base
            raise ArtifactError(f"{self.manifest.digest[:12]}… doesn't answer: {error}") from error
        if answer.shape != (1, len(classes)) or not np.isfinite(answer).all() or abs(answer.sum() - 1) > 1e-3:
            raise ArtifactError(f"{self.manifest.digest[:12]}… doesn't answer with {len(classes)} probabilities a row")


def predict(data: bytes, rows: Array) -> npt.NDArray[np.float32]:
    """Probabilities [N, classes] by the model file `data`, exactly as a server computes them (one thread)."""
    session = _session(data, threads=1)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: rows})[0])


def score(probabilities: Array, labels: Array, estimator: Estimator) -> Scores:
    """Of predictions [N, classes] for class indices [N]. Raises ArtifactError when a probability is not finite."""
    if not np.isfinite(probabilities).all():
        raise ArtifactError("the model's probabilities are not finite: its training diverged")
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = -float(np.log(np.maximum(likelihood, np.finfo(np.float32).tiny)).mean())
    return Scores(accuracy=accuracy, loss=loss, rows=len(labels), estimator=estimator)


def widened(rows: Array, input: Input) -> Array:
    """Rows [N, features] with a column of 0 and 1 for each value of a category, after the plain columns."""
    plain, codes = _columns(input)
    return np.concatenate([rows[:, plain], *(rows[:, [column]] == code for column, code in codes)], axis=1)


def _columns(input: Input) -> tuple[list[int], list[tuple[int, int]]]:
    """The plain columns, and (column, code) for each value of a category."""
    features = input.features or []
    plain = [j for j, feature in enumerate(features) if feature.values is None]
    return plain, [(j, code) for j, feature in enumerate(features) for code in range(len(feature.values or []))]


def mlp(
    layers: Sequence[Layer],
    activation: str,
    input: Input,
    classes: Sequence[str],
    offset: Array | None = None,
    scale: Array | None = None,
) -> bytes:
    """Write a multi-layer perceptron as one self-contained ONNX file.

    softmax(Gemm(... activation(Gemm((float(rows) - offset) * scale)))): `offset` and `scale` broadcast against a row,
    which is first `widened` where its input has categories. Raises ArtifactError for weights that aren't finite.
    """
    from onnx import TensorProto, helper, numpy_helper

    if activation not in ACTIVATIONS:
        raise ArtifactError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    nodes: list[Any] = []
    tensors: list[Any] = []

    def node(operator: str, *inputs: str | Array, **settings: Any) -> str:
        """Add a node of the outputs and constants that it takes; the name of its output."""
        names = [name if isinstance(name, str) else f"c{len(tensors) + i}" for i, name in enumerate(inputs)]
        for name, constant in zip(names, inputs, strict=True):
            if not isinstance(constant, str):
                if not np.isfinite(constant).all():
                    raise ArtifactError("the model's weights are not finite: its training diverged")
                kind = np.int64 if constant.dtype.kind == "i" else np.float32
                tensors.append(numpy_helper.from_array(np.ascontiguousarray(constant, kind), name))
        output = f"{operator.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operator, names, [output], **settings))
        return output

    last = input.name if input.dtype == "float32" else node("Cast", input.name, to=TensorProto.FLOAT)
    plain, codes = _columns(input)
    if codes:
        repeated = node("Gather", last, np.array([column for column, _ in codes]), axis=1)
        equal = node("Equal", repeated, np.array([code for _, code in codes], np.float32))
        one_hot = node("Cast", equal, to=TensorProto.FLOAT)
        last = node("Concat", node("Gather", last, np.array(plain, np.int64), axis=1), one_hot, axis=1)
    if offset is not None:
        last = node("Sub", last, offset)
    if scale is not None:
        last = node("Mul", last, scale)
    for index, (weights, bias) in enumerate(layers):
        last = node("Gemm", last, weights, bias)
        if (hidden := ACTIVATIONS[activation]) and index < len(layers) - 1:
            last = node(hidden, last)
    last = node("Softmax", last, axis=-1)
    dtype = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}[input.dtype]
    takes = helper.make_tensor_value_info(input.name, dtype, ["rows", *input.shape])
    answers = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["rows", len(classes)])
    graph, opsets = helper.make_graph(nodes, "mlp", [takes], [answers], tensors), [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="nas")
    helper.set_model_props(model, {CONTRACT: msgspec.json.encode(Contract(input, list(classes))).decode()})
    return bytes(model.SerializeToString())


def layers(data: bytes) -> list[Layer]:
    """The layers in a file that `mlp` wrote."""
    from onnx import numpy_helper

    graph = _messages().ModelProto.FromString(data).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    gemms = [node.input for node in graph.node if node.op_type == "Gemm"]
    return [(numpy_helper.to_array(tensors[w]), numpy_helper.to_array(tensors[b])) for _, w, b in gemms]


def digest(data: bytes) -> str:
    """The sha256 by which a model file is known, in hex."""
    return hashlib.sha256(data).hexdigest()


def save(folder: Path, data: bytes, manifest: Manifest) -> None:
    """Put model and manifest into `folder`. Killed at any point, `load` finds the old pair or the new one.

    The new manifest waits under another name until its model is in place. Raises OSError.
    """
    files.write(folder / _NEXT, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    files.write(folder / MODEL_FILE, data)
    (folder / _NEXT).replace(folder / MANIFEST_FILE)
    files.sync_folder(folder)


def read(folder: Path, expected: str | None = None) -> tuple[Manifest, bytes]:
    """Manifest and bytes of the model in `folder`, verified but not built. Raises ArtifactError."""
    path = folder / MODEL_FILE
    try:
        size = path.stat().st_size
        if size > SIZE_CAP:
            raise ArtifactError(f"{path} has {size} bytes; at most {SIZE_CAP} are loaded")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror}") from error
    actual = digest(data)
    if expected not in (None, actual):
        raise ArtifactError(f"{path} is damaged: its sha256 is {actual[:12]}…, expected {str(expected)[:12]}…")
    manifest = _manifest(folder, actual)
    _check(path, data, manifest)
    return manifest, data


def load(folder: Path, expected: str | None = None, threads: int = 1) -> Model:
    """The model in `folder`, with the digest `expected` if given, once it has answered. Raises ArtifactError."""
    manifest, data = read(folder, expected)
    try:
        model = Model(manifest, data, threads)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ArtifactError(f"{folder / MODEL_FILE} can't be built: {error}") from error
    model.check_answer()
    return model


def _manifest(folder: Path, actual: str) -> Manifest:
    problem = ""
    for path in (folder / MANIFEST_FILE, folder / _NEXT):
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            problem = problem or f"is missing or damaged: {error}"
            continue
        if manifest.schema_version > SCHEMA_VERSION:
            raise ArtifactError(f"{path} is of a newer version ({manifest.schema_version}): upgrade this image")
        if manifest.digest == actual:
            return manifest
        problem = f"is not of the model beside it: it names {manifest.digest[:12]}…, the file is {actual[:12]}…"
    raise ArtifactError(f"{folder / MANIFEST_FILE} {problem}")


def _check(path: Path, data: bytes, manifest: Manifest) -> None:
    from google.protobuf.message import DecodeError

    try:
        model = _messages().ModelProto.FromString(data)
    except DecodeError as error:
        raise ArtifactError(f"{path} is not an ONNX file") from error
    graph = model.graph
    foreign = {node.domain or node.op_type for node in graph.node if node.domain or node.op_type not in OPERATORS}
    if foreign:
        raise ArtifactError(f"{path} uses operators that are not allowed: {', '.join(sorted(foreign))}")
    nested = any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)
    if nested or model.functions or model.training_info or graph.sparse_initializer:
        raise ArtifactError(f"{path} holds more than a plain graph")
    if any(tensor.data_location == tensor.EXTERNAL or tensor.external_data for tensor in graph.initializer):
        raise ArtifactError(f"{path} keeps weights in another file")
    text = {entry.key: entry.value for entry in model.metadata_props}.get(CONTRACT, "")
    try:
        contract = msgspec.json.decode(text, type=Contract)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} doesn't say what it takes and answers: {error}") from error
    if contract != Contract(manifest.input, manifest.classes):
        raise ArtifactError(f"{path} and its manifest disagree about input or classes")


@functools.cache
def _messages() -> Any:
    """ONNX's protobuf messages alone: `import onnx` would be a third of a server's cold start."""
    folder = Path(str(importlib.util.find_spec("onnx").origin)).parent  # type: ignore[union-attr]
    loader = SourceFileLoader("onnx.onnx_ml_pb2", str(folder / "onnx_ml_pb2.py"))
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


def _session(data: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # onnxruntime ignores OMP_NUM_THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
