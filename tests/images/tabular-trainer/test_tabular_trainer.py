import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from modelkit import artifact, store

SCRIPT = Path(__file__).parents[3] / "images/tabular-trainer/train.py"


# The trainer, which also leaves what it reports of its folds: EPOCH-FOLD.onnx.
KEEPING = """
import runpy, sys
from modelkit import trial
report = trial.Trial.report
def keeping(self, **told):
    report(self, **told)
    for number, fold in enumerate(told["folds"]):
        (self.folder / f"{len(self.history)}-{number}.onnx").write_bytes(fold)
trial.Trial.report = keeping
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--layers=1", "--units=16", "--lr=0.02", f"--export-path={folder}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"NAS_CPUS": "1"})


def epoch_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("epoch=")]


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tabular_trainer", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The store a trial left, and the epoch lines it printed."""
    root = tmp_path_factory.mktemp("store")
    words = ["--layers=1", "--units=16", "--lr=0.02", "--seed=3", f"--export-path={root}/iris/trials/search/one"]
    command = [sys.executable, "-c", KEEPING, str(SCRIPT), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return root, epoch_lines(result)


def test_the_printed_accuracy_is_exactly_that_of_the_kept_folds_on_the_rows_they_never_saw(
    trained: tuple[Path, list[str]], trainer: ModuleType
) -> None:
    root, lines = trained
    manifest = store.Store(root, "iris").load().manifest
    data = trainer.split(trainer.read_iris())
    kept = (root / f"iris/trials/search/one/{manifest.epoch}-{index}.onnx" for index in range(len(data.held)))
    correct = sum(
        int((artifact.predict(fold.read_bytes(), data.rows[held]).argmax(axis=1) == data.labels[held]).sum())
        for fold, held in zip(kept, data.held, strict=True)
    )
    printed = float(lines[manifest.epoch - 1].split("accuracy=")[1])
    assert printed == correct / len(data.rows) == manifest.metrics.validation.accuracy
    assert manifest.metrics.validation.estimator == "cv"


def test_the_promoted_model_scores_on_the_test_set_as_its_manifest_says(
    trained: tuple[Path, list[str]], trainer: ModuleType
) -> None:
    model = store.Store(trained[0], "iris").load()
    rows, labels = trainer.split(trainer.read_iris()).test
    assert model.manifest.metrics.test == artifact.score(model.predict(rows), labels, "test")


def test_no_row_is_both_learned_from_and_tested_on(trainer: ModuleType) -> None:
    table = trainer.read_iris()
    data = trainer.split(table)
    assert len(data.rows) + len(data.test[0]) == len(table.rows)
    assert sorted(np.concatenate(data.held)) == list(range(len(data.rows)))
    assert all(np.bincount(data.labels[fold]).tolist() == [8, 8, 8] for fold in data.held)


def test_many_rows_have_one_hold_out_and_a_row_stays_in_its_part_when_others_come(trainer: ModuleType) -> None:
    rows = np.random.default_rng(0).normal(size=(2 * trainer.MANY, 3)).astype(np.float32)

    def parts(count: int) -> tuple[set[bytes], set[bytes], set[bytes]]:
        table = trainer.Table(rows[:count], np.arange(count) % 2, [], ["no", "yes"])
        data = trainer.split(table)
        (held,) = data.held
        chosen = np.delete(data.rows, held, axis=0), data.rows[held], data.test[0]
        learned, held_out, test = ({row.tobytes() for row in part} for part in chosen)
        return learned, held_out, test

    before, after = parts(trainer.MANY), parts(2 * trainer.MANY)
    assert sum(map(len, before)) == trainer.MANY
    assert all(
        abs(len(part) / trainer.MANY - share) < 0.04 for part, share in zip(before, (0.6, 0.2, 0.2), strict=True)
    )
    assert all(old <= new for old, new in zip(before, after, strict=True))


def test_a_killed_trial_that_goes_on_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = epoch_lines(train(tmp_path / "whole", "--epochs=6", "--patience=50"))
    stopped = tmp_path / "stopped"
    words = ["--layers=1", "--units=16", "--lr=0.02", "--epochs=6", "--patience=50", f"--export-path={stopped}"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    while not process.stdout.readline().startswith("epoch=2"):
        pass
    process.kill()
    process.wait()
    resumed = train(stopped, "--epochs=6", "--patience=50")
    assert "going on after epoch" in resumed.stdout
    assert epoch_lines(resumed) == whole


def test_the_manifest_tells_what_a_form_needs(trained: tuple[Path, list[str]]) -> None:
    manifest = json.loads((trained[0] / "iris/trials/search/one/manifest.json").read_text())
    assert [feature["name"] for feature in manifest["input"]["features"]] == [
        "sepal_length",
        "sepal_width",
        "petal_length",
        "petal_width",
    ]
    assert manifest["classes"] == ["setosa", "versicolor", "virginica"]
    assert manifest["parameters"]["units"] == "16"


def weather(path: Path, **cells: str) -> Path:
    """A table whose classes hang on categories and a number: rain where it is cloudy, or warm by the sea."""
    lines = ["day,sky,where,degrees,rain"]
    for day in range(150):
        sky, where, degrees = ("clear", "cloudy")[day % 2], ("sea", "hills", "town")[day % 3], 10 + day * 7 % 20
        rain = sky == "cloudy" or (where == "sea" and degrees > 20)
        row = {"day": day, "sky": sky, "where": where, "degrees": degrees, "rain": "yes" if rain else "no"}
        lines.append(",".join(str(cell) for cell in (row | (cells if day == 140 else {})).values()))
    path.write_text("\n".join(lines) + "\n")
    return path


COLUMNS = "--columns=sky:category,where:category,degrees"


def test_a_csv_file_with_categories_is_learned_and_its_names_are_in_the_model(tmp_path: Path) -> None:
    data = weather(tmp_path / "weather.csv")
    result = train(tmp_path / "weather/trials/search/one", f"--data={data}", "--target=rain", COLUMNS, "--epochs=25")
    assert result.returncode == 0, result.stderr
    model = store.Store(tmp_path, "weather").load()
    assert model.manifest.classes == ["no", "yes"]
    sky, where, degrees = model.manifest.input.features or []
    assert (sky.values, where.values, degrees.values) == (["clear", "cloudy"], ["hills", "sea", "town"], None)
    assert (degrees.min, degrees.max) == (10, 29)
    days = [("cloudy", "town", "12"), ("clear", "sea", "28"), ("clear", "hills", "28"), ("clear", "sea", "11")]
    rows = [[f.number(cell) for f, cell in zip((sky, where, degrees), day, strict=True)] for day in days]
    assert model.predict(np.array(rows, np.float32)).argmax(axis=1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("cells", "words", "message"),
    [
        ({}, ["--target=snow"], "has no column 'snow'; it has: day, sky, where, degrees, rain"),
        ({}, ["--target=rain", "--columns=depth"], "has no column 'depth'"),
        ({}, ["--target=rain", "--columns=sky:colour"], "'colour' is neither number nor category"),
        ({}, ["--target=rain"], "line 2: sky is 'clear', expected a finite number"),
        ({"degrees": ""}, ["--target=rain", COLUMNS], "line 142: degrees is '', expected a finite number"),
        ({"degrees": "20,1"}, ["--target=rain", COLUMNS], "line 142: expected 5 cells"),
        ({}, ["--target=day", COLUMNS], "day needs two classes or more, each with at least 10 rows"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_told_in_one_line(
    tmp_path: Path, cells: dict[str, str], words: list[str], message: str
) -> None:
    result = train(tmp_path / "best", f"--data={weather(tmp_path / 'weather.csv', **cells)}", *words)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert message in result.stderr


def test_a_learning_rate_that_diverges_ends_the_trial(tmp_path: Path) -> None:
    result = train(tmp_path / "wild", "--lr=1e300", "--activation=relu")
    assert result.returncode == 1
    assert "nan" not in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_the_digest_of_the_data_needs_no_scikit_learn_and_is_the_manifests(
    trained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "scipy.py").write_text("raise ImportError('not for a digest')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, str(SCRIPT), "--data-digest"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"sha256:{store.Store(trained[0], 'iris').load().manifest.data_digest}\n"


def points(path: Path, count: int = 2400) -> Path:
    """A table of many rows: which of two clouds a point is of."""
    random = np.random.default_rng(1)
    labels = np.arange(count) % 2
    lines = [
        f"{x:.6f},{y:.6f},{kind}"
        for (x, y), kind in zip(random.normal(size=(count, 2)) + 2 * labels[:, None], labels, strict=True)
    ]
    path.write_text("\n".join(["x,y,kind", *lines]) + "\n")
    return path


def test_a_warm_start_begins_where_the_current_model_is_and_the_manifest_names_it(tmp_path: Path) -> None:
    words = [f"--data={points(tmp_path / 'points.csv')}", "--target=kind", "--epochs=1", "--lr=1e-9", "--seed=7"]
    train(tmp_path / "points/trials/first/one", *words[:-2], "--lr=0.01", "--seed=1")
    current = store.Store(tmp_path, "points").load().manifest
    cold = train(tmp_path / "points/trials/cold/one", *words, "--warm-start=false")
    warm = train(tmp_path / "points/trials/warm/one", *words, "--warm-start=true")
    assert f"2 of 2 layers begun from {current.digest[:12]}" in warm.stdout
    assert artifact.load(tmp_path / "points/trials/warm/one").manifest.warm_start == current.digest
    assert artifact.load(tmp_path / "points/trials/cold/one").manifest.warm_start is None
    accuracy = [float(epoch_lines(result)[0].split("accuracy=")[1]) for result in (cold, warm)]
    assert accuracy[1] == pytest.approx(current.metrics.validation.accuracy, abs=0.01)
    assert accuracy[0] < accuracy[1] - 0.05


def test_a_model_that_learned_from_rows_held_out_now_is_not_begun_from(trained: tuple[Path, list[str]]) -> None:
    result = train(trained[0] / "iris/trials/next/one", "--warm-start", "--epochs=1")
    assert "not begun from the current model: it learned from rows held out here" in result.stdout
