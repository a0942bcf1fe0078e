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
    result = train(root / "iris/trials/search/one", "--seed=3")
    assert result.returncode == 0, result.stderr
    return root, epoch_lines(result)


def test_the_printed_accuracy_is_exactly_that_of_the_kept_folds_on_the_rows_they_never_saw(
    trained: tuple[Path, list[str]], trainer: ModuleType
) -> None:
    root, lines = trained
    manifest = store.Store(root, "iris").load().manifest
    split = trainer.Split.of(trainer.read_iris())
    folder = root / "iris/trials/search/one"
    folds = [(folder / f"fold-{index}.onnx").read_bytes() for index in range(len(split.folds))]
    correct = sum(
        int((artifact.predict(fold, split.rows[held]).argmax(axis=1) == split.labels[held]).sum())
        for fold, held in zip(folds, split.folds, strict=True)
    )
    printed = float(lines[manifest.epoch - 1].split("accuracy=")[1])
    assert printed == correct / len(split.rows) == manifest.metrics.validation.accuracy
    assert manifest.metrics.validation.estimator == "cv"


def test_the_promoted_model_scores_on_the_test_set_as_its_manifest_says(
    trained: tuple[Path, list[str]], trainer: ModuleType
) -> None:
    model = store.Store(trained[0], "iris").load()
    split = trainer.Split.of(trainer.read_iris())
    assert model.manifest.metrics.test == model.score(split.test_rows, split.test_labels, "test")


def test_no_row_is_both_learned_from_and_tested_on(trainer: ModuleType) -> None:
    table = trainer.read_iris()
    split = trainer.Split.of(table)
    assert len(split.rows) + len(split.test_rows) == len(table.rows)
    assert sorted(np.concatenate(split.folds)) == list(range(len(split.rows)))
    assert all(np.bincount(split.labels[fold]).tolist() == [8, 8, 8] for fold in split.folds)


def test_many_rows_have_one_hold_out_instead_of_folds(trainer: ModuleType) -> None:
    labels = np.arange(3 * trainer.MANY) % 2
    table = trainer.Table(np.zeros((len(labels), 1), np.float32), labels, [], ["no", "yes"])
    (held,) = trainer.Split.of(table).folds
    assert len(held) == trainer.Split.of(table).labels.size // trainer.HOLDOUT


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
    result = train(tmp_path / "wild", "--lr=1e30", "--activation=relu")
    assert result.returncode == 1
    assert "nan" not in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: ")
