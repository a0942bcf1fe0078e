import datetime
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from modelkit import artifact, files, store, trial

Trainer = Callable[..., list[str]]
LINE = re.compile(r"^epoch=\d+ loss=\d\S* accuracy=[01]\.\d+$")


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=60)


def epoch_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("epoch=")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "demo/trials/search/one"


def test_under_katib_a_line_begins_with_its_time_by_which_values_are_put_in_order(
    trainer: Trainer, folder: Path
) -> None:
    result = run(trainer("--lr=1", f"--export_path={folder}", "--epochs=8"), KATIB_TRIAL_NAME="one")
    stamps, lines = zip(*(line.split(" ", 1) for line in result.stdout.splitlines() if "epoch=" in line), strict=True)
    assert all(LINE.match(line) for line in lines)
    times = [datetime.datetime.fromisoformat(stamp) for stamp in stamps]
    assert times == sorted(set(times))
    assert all(re.fullmatch(r"[0-9-]+T[0-9:]+\.[0-9]{6}Z", stamp) for stamp in stamps)


def test_a_trial_prints_its_epochs_keeps_the_best_and_offers_it(trainer: Trainer, folder: Path, tmp_path: Path) -> None:
    result = run(trainer("--lr=1", f"--export_path={folder}", "--epochs=8"))
    assert result.returncode == 0, result.stderr
    lines = epoch_lines(result)
    assert lines
    assert all(LINE.match(line) for line in lines)
    assert not [line for line in result.stdout.splitlines() if "=" in line and not line.startswith("epoch=")]
    best = max(float(line.split("accuracy=")[1]) for line in lines)
    manifest = store.Store(tmp_path, "demo").load().manifest
    assert manifest.metrics.validation.accuracy == best
    assert (manifest.experiment, manifest.trial, manifest.epochs_run) == ("search", "one", len(lines))
    assert manifest.metrics.test is not None


def test_patience_ends_a_trial_that_no_longer_improves(trainer: Trainer, folder: Path) -> None:
    result = run(trainer("--lr=0", f"--export-path={folder}", "--patience=3"))
    assert len(epoch_lines(result)) == 4


def test_a_trial_outside_a_store_only_exports(trainer: Trainer, tmp_path: Path) -> None:
    result = run(trainer("--lr=1", f"--export-path={tmp_path / 'best'}", "--epochs=2"))
    assert result.returncode == 0
    assert artifact.load(tmp_path / "best").manifest.model == "demo"
    assert "offered" not in result.stdout


@pytest.mark.parametrize("number", [15, 2])
def test_a_stopped_trial_offers_its_best_model(number: int, trainer: Trainer, folder: Path, tmp_path: Path) -> None:
    result = run(trainer("--lr=1", f"--export-path={folder}", "--signal-at=3", f"--signal={number}"))
    assert result.returncode == 128 + number
    assert len(epoch_lines(result)) == 2
    assert store.Store(tmp_path, "demo").load().manifest.epochs_run == 2


def test_a_killed_trial_goes_on_where_it_was_and_prints_its_earlier_lines_again(
    trainer: Trainer, folder: Path, tmp_path: Path
) -> None:
    command = trainer("--lr=1", "--epochs=6")
    whole = epoch_lines(run([*command, f"--export-path={tmp_path / 'whole'}"]))
    killed = run([*command, f"--export-path={folder}", "--kill-at=4"])
    assert killed.returncode == -9
    assert artifact.load(folder).manifest.epochs_run <= 3
    resumed = run([*command, f"--export-path={folder}", "--kill-at=4"])
    assert resumed.returncode == -9, "the parameters are the same, so the kill comes again"
    assert epoch_lines(resumed) == whole[:3]
    (folder / "checkpoint.npz").write_bytes(b"torn")
    again = run([*command, f"--export-path={folder}"])
    assert epoch_lines(again) == whole


def test_a_resumed_trial_equals_one_that_was_never_killed(trainer: Trainer, folder: Path, tmp_path: Path) -> None:
    command = trainer("--lr=1", "--epochs=6", "--kill-at=0")
    whole = epoch_lines(run([*command, f"--export-path={tmp_path / 'whole'}"]))
    run([*command, f"--export-path={folder}", "--epochs=3"])
    assert epoch_lines(run([*command, f"--export-path={folder}"])) == whole


def test_a_checkpoint_of_other_parameters_is_not_gone_on_from(trainer: Trainer, folder: Path) -> None:
    run(trainer("--lr=1", f"--export-path={folder}", "--epochs=6", "--kill-at=4"))
    other = run(trainer("--lr=0.5", f"--export-path={folder}", "--epochs=2"))
    assert "going on" not in other.stdout
    assert len(epoch_lines(other)) == 2
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_loss_that_is_not_a_number_ends_the_trial_and_keeps_the_best_so_far(trainer: Trainer, folder: Path) -> None:
    result = run(trainer("--lr=1", f"--export-path={folder}", "--nan-at=3"))
    assert result.returncode == 1
    assert len(epoch_lines(result)) == 2
    assert "accuracy=nan" not in result.stdout + result.stderr
    assert result.stderr.startswith("error: epoch 3: the loss is nan")
    assert artifact.load(folder).manifest.epochs_run <= 2
    home = store.Store(folder.parents[3], "demo")
    assert [event.event for event in home.history()] == ["refused"]
    assert home.adopt() == []


def test_two_trials_never_write_to_one_folder(trainer: Trainer, folder: Path) -> None:
    folder.mkdir(parents=True)
    with files.locked(folder / ".lock"):
        result = run(trainer("--lr=1", f"--export-path={folder}"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "held by another process" in result.stderr


def test_an_export_path_that_cannot_be_written_is_one_line(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(trainer("--lr=1", f"--export-path={tmp_path}/file/x"))
    assert result.returncode == 1
    assert re.fullmatch(r"error: can't write to .*file/x: .*\n", result.stderr)


@pytest.mark.parametrize(
    ("words", "value"), [([], "false"), (["--warm-start=true"], "true"), (["--warm_start"], "true")]
)
def test_a_warm_start_is_asked_for_by_the_word_that_a_values_file_gives(words: list[str], value: str) -> None:
    parser = trial.argument_parser("")
    assert parser.parse_args(["--export-path=x", *words, "--seed=1"]).warm_start == value
    assert parser.parse_args(["--export-path=x", *words, "--warm-start=false"]).warm_start == "false"


@pytest.mark.parametrize(
    "words", [["--warm-start=yes"], ["--epochs=0"], ["--patience=0"], ["--lr=fast"], ["--unknown=1"], []]
)
def test_a_wrong_command_line_is_told(words: list[str], trainer: Trainer, folder: Path) -> None:
    result = run(trainer(f"--export-path={folder}", *(["--lr=1"] if words and "lr" not in words[0] else []), *words))
    assert result.returncode == 2
    assert "error:" in result.stderr
    assert not folder.exists()


def test_an_option_is_written_out_since_another_one_may_begin_alike(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        trial.argument_parser("").parse_args(["--export-path=best", "--epo=5"])
    assert "unrecognized arguments: --epo=5" in capsys.readouterr().err


def test_the_metrics_file_has_a_line_for_each_epoch(trainer: Trainer, folder: Path) -> None:
    result = run(trainer("--lr=1", f"--export-path={folder}", "--epochs=3"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    printed = [f"epoch={line['epoch']} loss={line['loss']!r} accuracy={line['accuracy']!r}" for line in lines]
    assert printed == epoch_lines(result)


def test_an_epoch_as_accurate_as_the_best_at_a_lower_loss_is_an_improvement() -> None:
    def best(*figures: tuple[float, float]) -> int:
        lines = [trial.Epoch(number, 1.0, *pair, 0.1) for number, pair in enumerate(figures, 1)]
        return trial.Trial.best.fget(SimpleNamespace(history=lines)).epoch

    assert best((0.33, 1.1), (0.33, 1.0)) == 2
    assert best((0.33, 1.1), (0.33, 1.1)) == 1
    assert best((0.33, 1.1), (0.32, 0.5)) == 1


def test_the_digest_of_the_data_is_told_without_training_and_is_the_manifests(
    trainer: Trainer, folder: Path, tmp_path: Path
) -> None:
    told = run(trainer("--data-digest"))
    assert (told.returncode, told.stderr) == (0, "")
    run(trainer("--lr=1", f"--export-path={folder}", "--epochs=1"))
    manifest = store.Store(tmp_path, "demo").load().manifest
    assert told.stdout == f"sha256:{manifest.data_digest}\n"
    assert run(trainer("--lr=1", f"--export-path={folder}", "--data_digest")).stdout == told.stdout


def test_a_label_that_is_learned_from_is_part_of_the_datas_digest() -> None:
    rows, labels, held = np.zeros((8, 2), np.float32), np.arange(8) % 2, [np.array([0, 1])]
    other = labels.copy()
    other[7] = 0
    assert trial.Data(rows, labels, held).digest != trial.Data(rows, other, held).digest


def test_the_share_of_rows_that_a_model_learned_from_is_told_from_a_sample(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32)
    labels = np.zeros(9000, np.int64)
    args = trial.argument_parser("").parse_args([f"--export-path={tmp_path}"])

    def made(held: artifact.Array) -> trial.Trial:
        takes = artifact.Input(dtype="float32", shape=[3])
        return trial.Trial(args, model="m", input=takes, classes=["a"], data=trial.Data(rows, labels, [held]))

    first, same, half = made(np.arange(3000)), made(np.arange(3000)), made(np.arange(1500, 4500))
    manifest = SimpleNamespace(learned=first._learned)
    assert same._seen_by(manifest) == 0
    assert half._seen_by(manifest) == pytest.approx(0.5, abs=0.15)
