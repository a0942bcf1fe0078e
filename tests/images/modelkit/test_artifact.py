from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx as onnx_format
import pytest
from modelkit import artifact
from onnx import TensorProto, helper

Onnx = Callable[..., bytes]
Folder = Callable[..., Path]


@pytest.mark.parametrize("activation", artifact.ACTIVATIONS)
def test_the_written_model_computes_the_network_it_was_given(activation: str, onnx: Onnx) -> None:
    functions = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh, "logistic": lambda z: 1 / (1 + np.exp(-z))}
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 4)), random.normal(size=(4, 2))
    offset, scale, rows = np.array([1.0, 2.0]), np.array([0.5, 3.0]), random.normal(size=(9, 2)).astype(np.float32)
    data = onnx(layers=[(first, np.ones(4)), (second, np.zeros(2))], activation=activation, offset=offset, scale=scale)
    hidden = functions.get(activation, lambda z: z)((rows - offset) * scale @ first + 1)
    expected = np.exp(hidden @ second)
    np.testing.assert_allclose(
        artifact.predict(data, rows), expected / expected.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )


def test_an_image_model_takes_bytes_as_the_files_have_them(onnx: Onnx) -> None:
    pixels = artifact.Input(dtype="uint8", shape=[2], image=[1, 2])
    probabilities = artifact.predict(onnx(input=pixels, scale=np.full(1, 1 / 255)), np.array([[0, 255]], np.uint8))
    assert probabilities.shape == (1, 2)
    assert probabilities.sum() == pytest.approx(1)


def test_weights_that_are_not_finite_are_never_written(onnx: Onnx) -> None:
    with pytest.raises(artifact.ArtifactError, match="not finite"):
        onnx(layers=[(np.array([[np.nan, 0], [0, 0]]), np.zeros(2))])


def test_a_saved_model_loads_with_what_its_manifest_says(trial_folder: Folder) -> None:
    model = artifact.load(trial_folder("a", 0.9))
    assert model.manifest.metrics.validation.accuracy == 0.9
    assert model.predict(np.zeros((3, 2), np.float32)).shape == (3, 2)


def test_the_digest_covers_classes_and_input(onnx: Onnx) -> None:
    renamed = artifact.Input(dtype="float32", shape=[2], features=[artifact.Feature("x", 0, 1)] * 2)
    digests = {artifact.digest(onnx(**change)) for change in ({}, {"classes": ["yes", "no"]}, {"input": renamed})}
    assert len(digests) == 3


def test_a_flipped_bit_is_refused(trial_folder: Folder) -> None:
    folder = trial_folder("a", 0.9)
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(artifact.ArtifactError, match="not of the model beside it"):
        artifact.load(folder)
    with pytest.raises(artifact.ArtifactError, match="damaged"):
        artifact.load(folder, "0" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "damaged"),
        (b"{}", "damaged"),
        (b'\xff\xfe{"', "damaged"),
        (b'{"model": 3}', "damaged"),
        (None, "is missing or damaged"),
    ],
)
def test_a_broken_manifest_is_refused(trial_folder: Folder, text: bytes | None, message: str) -> None:
    path = trial_folder("a", 0.9) / "manifest.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(artifact.ArtifactError, match=message):
        artifact.load(path.parent)


def test_a_manifest_that_tells_of_other_classes_is_refused(trial_folder: Folder) -> None:
    with pytest.raises(artifact.ArtifactError, match="disagree"):
        artifact.load(trial_folder("a", 0.9, classes=["yes", "no"]))


def test_a_manifest_of_a_later_version_asks_for_an_upgrade(trial_folder: Folder) -> None:
    with pytest.raises(artifact.ArtifactError, match="upgrade"):
        artifact.load(trial_folder("a", 0.9, schema_version=2))


def _with(data: bytes, change: Callable[[onnx_format.ModelProto], object]) -> bytes:
    model = onnx_format.load_model_from_string(data)
    change(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.graph.node.append(helper.make_node("Loop", [], [])), "operators that are not allowed: Loop"),
        (lambda m: m.graph.node.append(helper.make_node("Gemm", [], [], domain="evil")), "not allowed: evil"),
        (lambda m: m.functions.add(), "more than a plain graph"),
        (lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL), "in another file"),
        (lambda m: m.metadata_props.pop(), "doesn't say what it takes"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Softmax"), "can't be built"),
    ],
)
def test_a_model_that_does_more_than_a_network_needs_is_refused(
    onnx: Onnx, trial_folder: Folder, change: Callable[[onnx_format.ModelProto], object], message: str
) -> None:
    with pytest.raises(artifact.ArtifactError, match=message):
        artifact.load(trial_folder("a", 0.9, data=_with(onnx(), change)))


def test_a_file_that_is_no_model_is_refused(trial_folder: Folder) -> None:
    with pytest.raises(artifact.ArtifactError, match="not an ONNX file"):
        artifact.load(trial_folder("a", 0.9, data=b"\x80\x04]\x94."))


def test_a_model_over_the_size_cap_is_refused(trial_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SIZE_CAP", 100)
    with pytest.raises(artifact.ArtifactError, match="at most 100"):
        artifact.load(trial_folder("a", 0.9))


@pytest.mark.parametrize("step", range(4))
def test_a_save_killed_at_any_step_leaves_the_old_model_or_the_new(
    step: int, trial_folder: Folder, onnx: Onnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trial_folder("a", 0.9, seed=1)
    old, _ = artifact.read(folder)
    data = onnx(seed=2)
    new = msgspec.structs.replace(old, digest=artifact.digest(data), size=len(data))
    replace, steps = Path.replace, iter(range(4))

    def replace_until_killed(path: Path, target: Path) -> Path:
        if next(steps) == step:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_until_killed)
    if step < 3:
        with pytest.raises(KeyboardInterrupt):
            artifact.save(folder, data, new)
    else:
        artifact.save(folder, data, new)
    assert artifact.load(folder).manifest.digest == (old if step < 2 else new).digest


def test_probabilities_that_are_not_finite_are_no_score() -> None:
    with pytest.raises(artifact.ArtifactError, match="diverged"):
        artifact.score(np.full((2, 2), np.nan), np.zeros(2, int), "holdout")


def test_a_score_is_the_share_of_rows_whose_likeliest_class_is_theirs_and_their_mean_cross_entropy() -> None:
    scores = artifact.score(np.array([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]), np.array([0, 0, 0]), "cv")
    assert (scores.accuracy, scores.rows) == (2 / 3, 3)
    assert scores.loss == pytest.approx(-np.log([0.5, 0.75, 0.25]).mean())
