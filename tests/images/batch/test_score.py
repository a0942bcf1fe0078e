"""The batch job: what it prints and leaves behind, and what it says of inputs it can't score."""

import errno
import gzip
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import models
import numpy as np
import pytest
import score

HEADER = "petal_width,id,sepal_length,sepal_width,petal_length"
FLOWERS = ["0.2,a,5.1,3.5,1.4", "2.5,b,6.3,3.3,6.0", "1.3,c,5.7,2.8,4.1"]


def images(digits: list[int]) -> bytes:
    """An idx3 file of images that the brightest-of-ten model takes for these digits."""
    pixels = np.zeros((len(digits), 784), np.uint8)
    pixels[np.arange(len(digits)), digits] = 255
    return struct.pack(">4I", 0x0803, len(digits), 28, 28) + pixels.tobytes()


def labels(digits: list[int]) -> bytes:
    return struct.pack(">2I", 0x0801, len(digits)) + bytes(digits)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store of both models and an empty place for data."""
    for name, model in (("iris", models.iris_rule()), ("mnist", models.brightest_of_ten())):
        models.promote(tmp_path / "store", name, model)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    monkeypatch.setenv("NAS_DATA", str(tmp_path / "data"))
    return tmp_path


def arguments(place: Path, model: str, *words: str | Path) -> list[str]:
    return ["--store", str(place / "store"), "--model", model, "--output", str(place / "out"), *map(str, words)]


def written(place: Path) -> list[str]:
    assert [path.name for path in (place / "out").iterdir()] == ["predictions.csv"]
    return (place / "out" / "predictions.csv").read_text().splitlines()


def nothing_written(place: Path) -> bool:
    return not list(place.glob("out/*")) and not list(place.glob("out/.*"))


def test_the_mnist_test_set_is_scored_and_compared_with_its_labels(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = [i % 10 for i in range(10_000)]
    known = [*digits[:-100], *[9] * 100]  # of the last 100, ten are nines
    folder = place / "data" / "mnist"
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images(digits), 1))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels(known), 1))
    assert score.main(arguments(place, "mnist")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:100] == [f"Sample {i}: predicted class = {i % 10}" for i in range(100)]
    summary = "\n".join(lines[100:])
    assert "scored    10000 rows" in summary
    assert "classes   0: 1000, 1: 1000" in summary
    assert "accuracy  0.9910 (9910 of 10000 labelled rows)" in summary
    assert (place / "store" / "mnist" / "CURRENT").read_text().strip() in summary
    assert written(place) == ["row,class,label", *(f"{i},{k},{k}" for i, k in enumerate(digits))]


def test_rows_of_a_table_are_found_by_their_columns_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = place / "flowers.csv"
    table.write_text("\ufeff" + "\r\n".join([HEADER, *FLOWERS, "", ""]))
    assert score.main(arguments(place, "iris", "--input", table)) == 0
    assert written(place) == ["row,class,label", "0,0,setosa", "1,2,virginica", "2,1,versicolor"]
    out = capsys.readouterr().out
    assert "Sample 1: predicted class = 2 (virginica)\n" in out
    assert "accuracy" not in out


def test_a_table_with_labels_is_compared_with_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = place / "flowers.csv.gz"
    rows = [f"{flower},{label}" for flower, label in zip(FLOWERS, ["setosa"] * 3, strict=True)]
    table.write_bytes(gzip.compress("\n".join([f"{HEADER},label", *rows]).encode()))
    assert score.main(arguments(place, "iris", "--input", table)) == 0
    assert "accuracy  0.3333 (1 of 3 labelled rows)" in capsys.readouterr().out


def test_several_files_are_numbered_through(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "one").write_bytes(images([3, 1]))
    (place / "two").write_bytes(images([4, 1, 5]))
    assert score.main(arguments(place, "mnist", "--print", "4", "--input", place / "one", place / "two")) == 0
    assert written(place)[1:] == ["0,3,3", "1,1,1", "2,4,4", "3,1,1", "4,5,5"]
    samples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Sample")]
    assert samples == [f"Sample {i}: predicted class = {k}" for i, k in enumerate([3, 1, 4, 1])]


def test_a_version_is_chosen_by_the_start_of_its_digest(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    current = (place / "store" / "iris" / "CURRENT").read_text()
    other = models.promote(place / "store", "iris", models.iris_constant(1))
    (place / "store" / "iris" / "CURRENT").write_text(current)
    table = place / "flowers.csv"
    table.write_text("\n".join([HEADER, *FLOWERS]))
    assert score.main(arguments(place, "iris", "--digest", other[:10], "--input", table)) == 0
    assert {line.split(",")[1] for line in written(place)[1:]} == {"1"}
    assert f"model     iris {other}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "name", "content", "sentence"),
    [
        ("iris", "digits", images([1]), "digits: the model wants 4 (float32) numbers a row, got 784 (uint8)"),
        ("mnist", "small", struct.pack(">4I", 0x0803, 1, 2, 2) + b"\0" * 4, "784 (uint8) numbers a row, got 4 (uint8)"),
        ("mnist", "cut", images([1, 2])[:-1], "cut is cut short: its header promises more than it holds"),
        ("mnist", "cut.gz", gzip.compress(images([1]))[:-20], "cut.gz can't be read: Compressed file ended"),
        ("mnist", "no.gz", b"no gzip", "no.gz can't be read: Not a gzipped file"),
        ("mnist", "table.csv", b"a,b\n1,2\n", "table.csv: the model wants idx files of images, got the header 'a,b'"),
        ("mnist", "picture.png", b"\x89PNG1234", "picture.png is neither an idx file of bytes nor named .csv"),
        ("mnist", "empty", b"", "empty is neither an idx file of bytes nor named .csv"),
        ("iris", "other.csv", b"a,b\n1,2\n", "the model wants the columns sepal_length, sepal_width, petal_length, "),
        ("iris", "empty.csv", b"", "got the header ''"),
        ("iris", "word.csv", f"{HEADER}\n{FLOWERS[0]}\n\nx,b,1,1,1\n".encode(), "word.csv line 4: expected a number"),
        ("iris", "nan.csv", f"{HEADER}\n0.2,a,nan,3,1\n".encode(), "nan.csv line 2: expected a number"),
        ("iris", "huge.csv", f"{HEADER}\n0.2,a,1e39,3,1\n".encode(), "huge.csv line 2: expected a number"),
        ("iris", "short.csv", f"{HEADER}\n0.2,a,1\n".encode(), "short.csv line 2: expected a number"),
        ("iris", "bytes.csv", f"{HEADER}\n".encode() + b"\xff\xfe", "bytes.csv can't be read: "),
        ("iris", "label.csv", f"{HEADER},label\n{FLOWERS[0]},rose\n".encode(), "label 'rose' is none of the model's"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:12] else "",
)
def test_a_file_that_can_not_be_scored_is_named_with_its_reason(
    place: Path, capsys: pytest.CaptureFixture[str], model: str, name: str, content: bytes, sentence: str
) -> None:
    (place / name).write_bytes(content)
    assert score.main(arguments(place, model, "--input", place / name)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert nothing_written(place)


def test_labels_that_are_not_as_many_as_the_images_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a-images-idx3-ubyte").write_bytes(images([1, 2, 3]))
    (place / "a-labels-idx1-ubyte").write_bytes(labels([1, 2]))
    assert score.main(arguments(place, "mnist", "--input", place / "a-images-idx3-ubyte")) == 1
    assert "a-labels-idx1-ubyte: expected 3 labels" in capsys.readouterr().err


def test_missing_data_model_and_version_are_each_said_with_what_to_do(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        (arguments(place, "mnist"), "get it with: nas data mnist"),
        (arguments(place, "mnist", "--input", place / "gone.csv"), "gone.csv can't be read: No such file"),
        (arguments(place, "rose", "--input", place / "x.csv"), "no model 'rose'"),
        (arguments(place, "mnist", "--digest", "feed", "--input", place / "x"), "no model 'feed'"),
    ):
        assert score.main(words) == 1
        assert sentence in capsys.readouterr().err
        assert nothing_written(place)


def test_a_place_that_can_not_be_written_is_noticed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out").write_text("a file, not a folder")
    (place / "one").write_bytes(images([3]))
    assert score.main(arguments(place, "mnist", "--input", place / "one")) == 1
    assert f"can't write to {place / 'out'}" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_predictions_as_they_were(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (place / "one").write_bytes(images([3]))
    assert score.main(arguments(place, "mnist", "--input", place / "one")) == 0
    (place / "one").write_bytes(images([4]))
    monkeypatch.setattr(os, "fsync", full)
    assert score.main(arguments(place, "mnist", "--input", place / "one")) == 1
    assert "error: no space left on the disk" in capsys.readouterr().err
    assert written(place) == ["row,class,label", "0,3,3"]


def start(place: Path, *words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, score.__file__, *arguments(place, "mnist", *words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_ended_in_the_middle_leaves_no_output(place: Path, number: signal.Signals) -> None:
    slow = place / "slow"
    os.mkfifo(slow)  # an input that never ends: the first chunk comes, the second doesn't
    first = images([5] * 5000)[: 16 + 4096 * 784]

    def feed() -> None:
        with slow.open("wb") as pipe:
            pipe.write(first)
            pipe.flush()
            process.wait()

    process = start(place, "--input", slow)
    feeder = threading.Thread(target=feed)
    feeder.start()
    assert process.stdout
    assert process.stdout.readline() == "Sample 0: predicted class = 5\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    feeder.join(timeout=30)
    assert process.returncode in (143, -number)
    assert nothing_written(place)


def test_a_reader_that_stops_reading_is_no_error(place: Path) -> None:
    (place / "many").write_bytes(images([1] * 20_000))
    process = start(place, "--input", place / "many", "--print", "20000")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=30)
    process.stderr.close()


def test_shards_together_hold_every_row_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "CHUNK", 3)
    digits = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    path = place / "images-idx3-ubyte"
    path.write_bytes(images(digits))
    for shard in range(3):
        split = ["--shards", "3", "--shard-index", str(shard)]
        assert score.main([*arguments(place, "mnist"), "--input", str(path), *split]) == 0
    parts = [(place / "out" / f"predictions-{shard}-of-3.csv").read_text().splitlines() for shard in range(3)]
    rows = sorted(tuple(map(int, line.split(","))) for part in parts for line in part[1:])
    assert rows == [(number, digit, digit) for number, digit in enumerate(digits)]
    assert [len(part) - 1 for part in parts] == [4, 3, 3]


def test_a_shard_that_is_none_of_them_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        score.main([*arguments(place, "mnist"), "--shards", "3", "--shard-index", "3"])
    assert "--shard-index is 0 to 2 with --shards 3" in capsys.readouterr().err
