import copy
import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from modelkit import artifact, trial

SCRIPT = Path(__file__).parents[3] / "images/mnist-trainer/train.py"
ROWS = {"train": 1200, "t10k": 200}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits that can be told apart: each lights a square of its own, under noise; idx.gz files as MNIST's."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    random = np.random.default_rng(0)
    for part, count in ROWS.items():
        labels = random.integers(10, size=count).astype(np.uint8)
        images = random.integers(120, size=(count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 + 10 * (label % 2) :, 2 + 5 * (label // 2) :][:6, :4] += 100
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"mnist/{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mnist_{path.stem}", path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    return module(SCRIPT)


@pytest.fixture(scope="module")
def network() -> ModuleType:
    return module(SCRIPT.with_name("network.py"))


def command(folder: Path, *words: str) -> list[str]:
    sizes = ["--layers=2", "--units=16", "--lr=0.01", "--batch-size=50"]
    return [sys.executable, str(SCRIPT), *sizes, f"--export-path={folder}", *words]


def train(data: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NAS_DATA": str(data), "NAS_CPUS": "1"}
    return subprocess.run(command(folder, *words), capture_output=True, text=True, timeout=120, env=environment)


def epoch_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("epoch=")]


def read(trainer: ModuleType, data: Path, part: str) -> tuple[artifact.Array, artifact.Array]:
    images, labels = trainer.read(data / "mnist", part)
    return images.reshape(len(images), -1), labels


def test_the_printed_accuracy_is_exactly_that_of_the_kept_file_on_the_hold_out(
    data: Path, tmp_path: Path, trainer: ModuleType
) -> None:
    result = train(data, tmp_path / "best", "--epochs=4")
    assert result.returncode == 0, result.stderr
    model = artifact.load(tmp_path / "best")
    images, labels = read(trainer, data, "train")
    holdout = trial.held_out(images, labels, trainer.HOLDOUT)
    scores = artifact.score(model.predict(images[holdout]), labels[holdout], "holdout")
    printed = float(epoch_lines(result)[model.manifest.epoch - 1].split("accuracy=")[1])
    assert printed == scores.accuracy == model.manifest.metrics.validation.accuracy
    assert scores.accuracy > 0.5, "a network that learns tells these digits apart better than by chance"
    images, labels = read(trainer, data, "t10k")
    assert model.manifest.metrics.test == artifact.score(model.predict(images), labels, "test")


def test_an_image_is_held_out_by_its_own_content_whatever_comes_beside_it() -> None:
    images = np.random.default_rng(0).integers(256, size=(6000, 784)).astype(np.uint8)
    labels = np.arange(6000) % 10
    held = trial.held_out(images, labels, 6)
    assert 850 < len(held) < 1150
    assert (trial.held_out(images[1000:], labels[1000:], 6) == held[held >= 1000] - 1000).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_the_file_computes_what_the_averaged_network_computes(
    data: Path, trainer: ModuleType, network: ModuleType, activation: str
) -> None:
    images, labels = trainer.read(data / "mnist", "train")
    words = "--layers=3 --units=16 --lr=0.01 --batch-size=50 --epochs=3 --seed=1 --export-path=x"
    args = trainer.arguments([*words.split(), f"--activation={activation}"])
    training = network.Training(args, images, labels, 10)
    training.epoch()
    averaged = training.averaged.eval()
    rows = images[:100].reshape(100, -1)
    with torch.no_grad():
        standardised = (torch.from_numpy(rows.astype(np.float32)) - training.mean) / training.deviation
        expected = averaged(standardised).softmax(dim=1).numpy()
    contract = artifact.Input(dtype="uint8", shape=[784], image=[28, 28])
    onnx = training.onnx(contract, [str(digit) for digit in range(10)])
    np.testing.assert_allclose(artifact.predict(onnx, rows), expected, atol=1e-5)


def test_distortion_moves_each_image_by_a_draw_of_its_own_and_keeps_it_recognisable(network: ModuleType) -> None:
    torch.manual_seed(0)
    image = torch.zeros(28, 28)
    image[8:20, 12:16] = 200
    copies = image.repeat(16, 1, 1)
    maps = network.basis(28, 28)
    for used in (maps[:3], maps):
        torch.testing.assert_close(network.distorted(copies, 0.0, used), copies, atol=0.01, rtol=0)
        moved = network.distorted(copies, 1.0, used)
        assert len({tuple(one.flatten().tolist()) for one in moved}) == 16
        mass = moved.sum(dim=(1, 2)) / image.sum()
        assert mass.min() > 0.7
        assert mass.max() < 1.4
        y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
        for axis in (y, x):
            centre = (moved * axis).sum(dim=(1, 2)) / moved.sum(dim=(1, 2))
            assert (centre - 13.5).abs().max() < network.PIXELS + 3
    bent, straight = ((network.distorted(copies, 1.0, used) > 100).float() for used in (maps, maps[:3]))
    assert bent.shape == straight.shape == copies.shape


@pytest.mark.parametrize("words", [["--augmentation=elastic"], ["--augmentation=affine"]])
def test_distorted_images_are_learned_from(data: Path, tmp_path: Path, words: list[str]) -> None:
    more = ["--strength=0.3", "--label-smoothing=0.05", "--weight-decay=0.05", "--epochs=6"]
    lines = epoch_lines(train(data, tmp_path / "best", *words, *more))
    assert float(lines[-1].split("accuracy=")[1]) > 0.5


def test_the_learning_rate_warms_up_and_falls_to_nothing(data: Path, trainer: ModuleType, network: ModuleType) -> None:
    words = "--layers=1 --units=4 --lr=0.2 --batch-size=60 --epochs=10 --export-path=x"
    training = network.Training(trainer.arguments(words.split()), *trainer.read(data / "mnist", "train"), 10)
    rates = []
    for training.step in (0, 20, 110, 200):
        rates.append(training._rate() / 0.2)
    assert training.steps == 200
    assert rates == pytest.approx([1 / 20, 1, 0.5, 0], abs=0.01)


def test_a_step_is_one_of_torchs_own_adamw(data: Path, trainer: ModuleType, network: ModuleType) -> None:
    words = (
        "--layers=2 --units=8 --lr=0.1 --weight-decay=0.3 --dropout=0 --augmentation=none --epochs=2 --export-path=."
    )
    training = network.Training(trainer.arguments(words.split()), *trainer.read(data / "mnist", "train"), 10)
    other = copy.deepcopy(training.network).train()
    optimizer = torch.optim.AdamW(other.parameters(), weight_decay=0.3)
    for rows in torch.arange(600).view(10, 60):
        optimizer.param_groups[0]["lr"] = training._rate()
        loss = torch.nn.functional.cross_entropy(other(training._batch(rows)), training.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(training._learn(rows), loss.detach())
    for ours, torchs in zip(training.network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-4, rtol=1e-3)


def test_a_warm_start_begins_where_the_current_model_is_and_the_manifest_names_it(data: Path, tmp_path: Path) -> None:
    first = train(data, tmp_path / "mnist/trials/first/one", "--epochs=4")
    current = artifact.load(tmp_path / "mnist/trials/first/one").manifest
    for name, words in (("cold", ["--warm-start=false"]), ("warm", ["--warm-start=true"])):
        train(data, tmp_path / f"mnist/trials/{name}/one", "--epochs=1", "--lr=1e-9", "--seed=7", *words)
    cold, warm = (artifact.load(tmp_path / f"mnist/trials/{name}/one").manifest for name in ("cold", "warm"))
    assert (cold.warm_start, warm.warm_start) == (None, current.digest), first.stderr
    assert warm.metrics.validation.accuracy > current.metrics.validation.accuracy - 0.1
    assert cold.metrics.validation.accuracy < 0.4


def test_images_of_any_size_with_names_of_their_own_are_learned_from(tmp_path: Path) -> None:
    folder = tmp_path / "bars"
    folder.mkdir()
    for part, count in ROWS.items():
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = np.random.default_rng(0).integers(100, size=(count, 6, 9)).astype(np.uint8)
        images[labels == 0, 2], images[labels == 1, :, 4] = 255, 255
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    result = train(tmp_path, tmp_path / "best", "--data=bars", "--classes=lying,standing", "--epochs=3")
    assert result.returncode == 0, result.stderr
    model = artifact.load(tmp_path / "best")
    assert (model.manifest.classes, model.manifest.input.image) == (["lying", "standing"], [6, 9])
    assert model.manifest.metrics.test
    assert model.manifest.metrics.test.accuracy == 1
    short = train(tmp_path, tmp_path / "short", "--data=bars", "--classes=lying")
    assert (short.returncode, short.stderr.splitlines()[-1][:6]) == (1, "error:")


def test_a_killed_trial_that_goes_on_equals_one_that_was_never_stopped(data: Path, tmp_path: Path) -> None:
    words = ["--epochs=5", "--patience=50", "--seed=3"]
    whole = epoch_lines(train(data, tmp_path / "whole", *words))
    environment = os.environ | {"NAS_DATA": str(data), "NAS_CPUS": "1"}
    process = subprocess.Popen(command(tmp_path / "cut", *words), stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    while not process.stdout.readline().startswith("epoch=2"):
        pass
    process.kill()
    process.wait()
    resumed = train(data, tmp_path / "cut", *words)
    assert "going on after epoch" in resumed.stdout
    assert epoch_lines(resumed) == whole


def test_data_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    result = train(tmp_path, tmp_path / "best")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "nas data" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_damaged_file_is_one_clear_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for path in (data / "mnist").iterdir():
        (tmp_path / "mnist" / path.name).write_bytes(path.read_bytes()[:-100])
    result = train(tmp_path, tmp_path / "best")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)


def test_a_learning_rate_that_diverges_ends_the_trial_without_a_nan(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "wild", "--lr=1e30", "--epochs=2")
    assert result.returncode == 1
    assert "nan" not in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_the_digest_of_the_data_needs_no_torch_and_is_the_manifests(data: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not for a digest')\n")
    environment = os.environ | {"NAS_DATA": str(data), "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, str(SCRIPT), "--data-digest"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert (told.returncode, told.stderr) == (0, "")
    train(data, tmp_path / "best", "--epochs=1")
    assert told.stdout == f"sha256:{artifact.load(tmp_path / 'best').manifest.data_digest}\n"
