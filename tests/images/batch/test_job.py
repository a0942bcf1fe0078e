"""A job is done once: killed anywhere, by several processes, beside another job, with inputs that change."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import inputs
import job
import models
import numpy as np
import pyarrow.parquet as pq
import pytest
import score
from idx_files import images, labels
from modelkit import files

Arguments = Callable[..., list[str]]
DIGITS = [i * 7 % 10 for i in range(40)]


@pytest.fixture
def source(place: Path) -> Path:
    path = place / "a-images-idx3-ubyte"
    path.write_bytes(images(DIGITS))
    (place / "a-labels-idx1-ubyte").write_bytes(labels(DIGITS))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files of an output, _SUCCESS without its timing."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if whole := found.get("_SUCCESS"):
        found["_SUCCESS"] = json.dumps(json.loads(whole) | {"timing": None}).encode()
    return found


def predicted(folder: Path) -> list[int]:
    found: list[int] = pq.read_table(folder)["class"].to_pylist()
    return found


def always_three() -> bytes:
    return models.artifact.mlp([(np.zeros((784, 10)), np.eye(10)[3] * 20)], "identity", models.MNIST, models.DIGITS)


def killed(words: list[str], step: int) -> bool:
    """Run a job that kill -9 ends before its `step`-th change on the disk; whether it got that far."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(score.__file__).parent)!r})
import score
changes = 0
def audit(event, _):
    global changes
    if event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove") or (event == "open" and _[2] & os.O_CREAT):
        changes += 1
        if changes == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
sys.exit(score.main({words!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode != 0


def test_a_job_killed_at_any_change_on_the_disk_ends_with_the_same_bytes(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("mnist", "--input", source, "--shards", "3", "--probabilities")
    assert score.main(words) == 0
    whole = contents(place / "out")
    assert predicted(place / "out") == DIGITS
    (place / "out").rename(place / "first")
    for step in (3, 9, 15, 21, 27, 33, 39, 45, 51, 55):  # from the plan to the end: see the assertion below
        assert killed(words, step), f"the job ends before its change {step}"
        done = [path.stem for path in (place / "out").glob("_work/*.json")]
        capsys.readouterr()
        assert score.main(words) == 0
        scored = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shard ")]
        if not (step > 33 and not scored):
            assert len(scored) == 3 - len(done)  # what was done isn't done again
        assert contents(place / "out") == whole
        subprocess.run(["rm", "-r", str(place / "out")], check=True)
    assert not killed(words, 1000)


def test_a_job_that_failed_before_its_plan_can_be_begun_in_the_same_folder(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score.main(arguments("mnist", "--input", place / "gone")) == score.REFUSED
    assert score.main(arguments("rose", "--input", source)) == 1
    assert capsys.readouterr().err.count("error: ") == 2
    assert score.main(arguments("mnist", "--input", source)) == 0
    assert predicted(place / "out") == DIGITS


def test_a_finished_job_is_left_as_it_is(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("mnist", "--input", source)
    assert score.main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in (place / "out").iterdir()}
    models.promote(place / "store", "mnist", always_three())
    capsys.readouterr()
    assert score.main(words) == 0
    assert "complete already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (place / "out").iterdir()} == before


def test_pods_score_a_shard_each_and_the_last_one_ends_the_job(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (2, 0, 1):
        assert not (place / "out" / "_SUCCESS").exists()
        assert score.main(arguments("mnist", "--input", source, "--shards", "3", "--shard-index", str(index))) == 0
    out = capsys.readouterr().out
    assert out.count("the other shards are not done yet") == 2
    assert out.count("scored    40 rows") == 1
    assert predicted(place / "out") == DIGITS
    assert pq.read_table(place / "out")["row"].to_pylist() == list(range(40))
    assert [path.name for path in sorted((place / "out").glob("part*"))] == [
        f"part-0000{i}-of-00003.parquet" for i in range(3)
    ]


def test_helpers_share_the_shards_and_nothing_is_done_twice(
    place: Path, source: Path, arguments: Arguments, capfd: pytest.CaptureFixture[str]
) -> None:
    assert score.main([*arguments("mnist", "--input", str(source), "--shards", "6"), "--workers", "3"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("shard ")]
    assert sorted(line[:8] for line in lines) == [f"shard {i}:" for i in range(6)]
    assert predicted(place / "out") == DIGITS


def planned(place: Path, source: Path) -> job.Job:
    """A job of two shards that nothing is done of."""
    request = job.Request("mnist", [str(source)], "parquet", False, [], "fail", 2)
    found = job.begin(place / "out", request, None, lambda _: score.store.Store(place / "store", "mnist").load())
    assert found
    return found


def test_a_shard_that_another_process_ended_just_before_is_not_scored_again(
    place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, original = planned(place, source), files.locked

    @contextlib.contextmanager
    def late(path: Path, wait: float = -1) -> Iterator[None]:
        path.with_suffix(".json").touch()  # what the other process leaves as it lets go of the lock
        with original(path, wait):
            yield

    monkeypatch.setattr(files, "locked", late)
    found.work(range(2), 0)
    assert not list((place / "out").glob("_work/*.part"))
    assert not list((place / "out").glob("part-*"))


def test_a_job_that_another_process_ends_as_its_last_shard_is_recorded_is_no_error_and_the_shard_is_told(
    place: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, other, original = planned(place, source), planned(place, source), files.sync_folder

    def late(folder: Path) -> None:
        if folder.name == job.WORK and other.over(0) and other.over(1):
            monkeypatch.setattr(files, "sync_folder", original)
            assert other.finish()
        original(folder)

    monkeypatch.setattr(files, "sync_folder", late)
    found.work(range(2), 0)
    assert files.sync_folder is original
    assert capsys.readouterr().out.splitlines()[-1].startswith("shard 1: 20 rows in ")
    assert found.finish()
    assert predicted(place / "out") == DIGITS


def test_a_job_that_another_process_ends_while_a_lock_is_waited_for_is_no_error(
    place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, other, original = planned(place, source), planned(place, source), files.locked

    def late(path: Path, _: float) -> contextlib.AbstractContextManager[None]:
        monkeypatch.setattr(files, "locked", original)
        other.work(range(2), 0)
        assert other.finish()
        raise FileNotFoundError(path)  # as filelock does when it looks again and the folder is gone

    monkeypatch.setattr(files, "locked", late)
    found.work(range(2), 0)
    assert found.finish()
    assert predicted(place / "out") == DIGITS


def test_a_shard_whose_process_is_killed_meanwhile_is_taken_over(place: Path, source: Path) -> None:
    found = planned(place, source)
    holding, release = threading.Event(), threading.Event()

    def other() -> None:  # holds the first shard, and never scores it
        with files.locked(place / "out" / "_work" / "00000.lock"):
            holding.set()
            release.wait(30)

    holder = threading.Thread(target=other)
    holder.start()
    assert holding.wait(30)
    scored: list[int] = []
    original = found._score

    def watched(shard: int, show: int) -> None:
        original(shard, show)
        scored.append(shard)
        release.set()

    found._score = watched  # type: ignore[method-assign]
    found.work(range(2), 0)
    holder.join()
    assert scored == [1, 0]
    assert found.finish()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--format", "csv"], "format parquet, not csv"),
        (["--shards", "2"], "shards 0, not 2"),
        (["--input", "other"], "inputs ["),
        (["--digest", "feedfeed"], "not feedfeed"),
        (["--on-error", "skip"], "on_error fail, not skip"),
    ],
)
def test_two_jobs_can_not_mix_in_one_folder(
    place: Path,
    source: Path,
    arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    sentence: str,
) -> None:
    assert score.main(arguments("mnist", "--input", source)) == 0
    before = contents(place / "out")
    assert score.main(arguments("mnist", "--input", source, *change)) == score.REFUSED
    error = capsys.readouterr().err
    assert "is another job's" in error
    assert sentence in error
    assert contents(place / "out") == before


def test_a_folder_with_other_files_is_not_written_to(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").touch()
    assert score.main(arguments("mnist", "--input", source)) == score.REFUSED
    assert "holds something else (thesis.txt)" in capsys.readouterr().err
    assert sorted(path.name for path in (place / "out").iterdir()) == ["thesis.txt"]


@pytest.mark.usefixtures("source")
def test_a_new_file_under_a_glob_is_not_passed_over_in_silence(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("mnist", "--input", str(place / "*-images-idx3-ubyte"))
    assert score.main(words) == 0
    assert score.main(words) == 0
    (place / "b-images-idx3-ubyte").write_bytes(images([1, 2]))
    assert score.main(words) != 0
    assert f"was begun without {place / 'b-images-idx3-ubyte'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a-images-idx3-ubyte", "a-labels-idx1-ubyte"])
def test_an_input_that_changes_while_it_is_scored_is_noticed(
    place: Path,
    source: Path,
    arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    original = inputs.Arrays.read

    def touched(*words: object) -> object:
        yield from original(*words)  # type: ignore[arg-type]
        os.utime(place / name, ns=(1, 1))

    monkeypatch.setattr(inputs.Arrays, "read", touched)
    words = arguments("mnist", "--input", source, "--shards", "2")
    assert score.main(words) == score.REFUSED
    assert f"{name} has changed since the job began" in capsys.readouterr().err
    assert not list((place / "out").glob("part*"))
    monkeypatch.undo()
    os.environ["NAS_DATA"] = str(place / "data")
    assert score.main(words) == score.REFUSED


def test_a_job_goes_on_with_the_model_it_began_with(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    def pod(index: int) -> list[str]:
        return arguments("mnist", "--input", source, "--shards", "2", "--shard-index", str(index))

    began = (place / "store" / "mnist" / "CURRENT").read_text().strip()
    assert score.main(pod(0)) == 0
    assert models.promote(place / "store", "mnist", always_three()) != began
    assert score.main(pod(1)) == 0
    assert f"model     mnist {began}" in capsys.readouterr().out
    assert predicted(place / "out") == DIGITS


def test_a_model_that_is_gone_or_damaged_is_noticed(
    place: Path, source: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    def pod(index: int) -> list[str]:
        return arguments("mnist", "--input", source, "--shards", "2", "--shard-index", str(index))

    assert score.main(pod(0)) == 0
    digest = (place / "store" / "mnist" / "CURRENT").read_text().strip()
    with (place / "store" / "mnist" / "versions" / digest / "model.onnx").open("ab") as file:
        file.write(b"more")
    assert score.main(pod(1)) == 1
    assert "is damaged" in capsys.readouterr().err


def test_shards_are_as_many_as_the_rows_need(
    place: Path, source: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_ROWS", 15)
    assert score.main(arguments("mnist", "--input", source)) == 0
    parts = [pq.read_table(path).num_rows for path in sorted((place / "out").glob("part*"))]
    assert parts == [13, 13, 14]


def test_a_full_disk_is_told_and_a_second_run_goes_on(
    place: Path,
    source: Path,
    arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        original(handle)

    words = arguments("mnist", "--input", source, "--shards", "4")
    monkeypatch.setattr(os, "fsync", full)
    assert score.main(words) == 1
    assert "error: no space left on the disk" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", original)
    assert score.main(words) == 0
    assert predicted(place / "out") == DIGITS


def test_more_inputs_than_files_may_be_open_are_scored(place: Path, arguments: Arguments) -> None:
    rows = np.zeros((1, 784), np.uint8)
    for number in range(60):
        np.save(place / f"{number:02}.npy", rows)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, before[1]))
    try:
        assert score.main(arguments("mnist", "--input", place / "[0-9]*.npy", "--shards", "1")) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(predicted(place / "out")) == 60
