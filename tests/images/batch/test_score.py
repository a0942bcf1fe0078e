"""The batch program: what it prints and leaves behind, and what it says of inputs it can't score."""

import csv
import gzip
import json
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import score
from blake3 import blake3
from idx_files import images, labels
from modelkit import artifact

Arguments = Callable[..., list[str]]

HEADER = "petal_width,id,sepal_length,sepal_width,petal_length"
FLOWERS = ["0.2,a,5.1,3.5,1.4", "2.5,b,6.3,3.3,6.0", "1.3,c,5.7,2.8,4.1"]


def rows(place: Path) -> list[tuple[int, int, str]]:
    """What was predicted: row, class, label."""
    table = pq.read_table(place / "out").to_pydict()
    return list(zip(table["row"], table["class"], table["label"], strict=True))


def nothing_scored(place: Path) -> bool:
    return not list(place.glob("out/part*")) and not (place / "out" / "_SUCCESS").exists()


def success(place: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((place / "out" / "_SUCCESS").read_text())
    return found


def test_the_mnist_test_set_is_scored_and_compared_with_its_labels(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = [i % 10 for i in range(10_000)]
    known = [*digits[:-100], *[9] * 100]  # of the last 100, ten are nines
    folder = place / "data" / "mnist"
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images(digits), 1))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels(known), 1))
    assert score.main(arguments("mnist")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("planned", "shard"))]
    assert lines[:100] == [f"Sample {i}: predicted class = {i % 10}" for i in range(100)]
    summary = "\n".join(lines[100:])
    assert "scored    10000 rows" in summary
    assert "classes   0: 1000, 1: 1000" in summary
    assert "accuracy  0.9910 of 10000 labelled rows" in summary
    assert (place / "store" / "mnist" / "CURRENT").read_text().strip() in summary
    assert rows(place) == [(i, k, str(k)) for i, k in enumerate(digits)]
    told = success(place)
    assert (told["rows"], told["accuracy"], told["skipped"]) == (10_000, 0.991, 0)
    (source,) = told["inputs"]  # type: ignore[misc]
    packed = (folder / "t10k-images-idx3-ubyte.gz").read_bytes()
    assert source["file"]["blake3"] == blake3(packed).hexdigest()  # type: ignore[index]
    metrics = json.loads((place / "out" / "_metrics.json").read_text())
    assert metrics["classes"][0] == {"class": "0", "rows": 990, "precision": 0.99, "recall": 1.0}
    assert metrics["confusion"][9][:2] == [10, 10]
    assert (place / "out" / "_confusion.png").read_bytes().startswith(b"\x89PNG")
    assert not (place / "out" / "_work").exists()


def test_rows_of_a_table_are_found_by_their_columns_names(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    table = place / "flowers.csv"
    table.write_text("\ufeff" + "\r\n".join([HEADER, *FLOWERS, "", ""]))
    assert score.main(arguments("iris", "--input", table, "--keep", "id", "--format", "csv", "--probabilities")) == 0
    lines = list(csv.reader((place / "out" / "part-00000-of-00001.csv").read_text().splitlines()))
    assert lines[0] == ["row", "class", "label", "p_setosa", "p_versicolor", "p_virginica", "id"]
    assert [(*line[:3], line[-1]) for line in lines[1:]] == [
        ("0", "0", "setosa", "a"),
        ("1", "2", "virginica", "b"),
        ("2", "1", "versicolor", "c"),
    ]
    assert all(abs(sum(map(float, line[3:6])) - 1) < 1e-6 for line in lines[1:])
    assert "Sample 1: predicted class = 2 (virginica)\n" in capsys.readouterr().out
    assert not list((place / "out").glob("_metrics*"))


def test_a_table_with_labels_is_compared_with_them(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    table = place / "flowers.csv.gz"
    lines = [f"{flower},{label}" for flower, label in zip(FLOWERS, ["setosa"] * 3, strict=True)]
    table.write_bytes(gzip.compress("\n".join([f"{HEADER},label", *lines]).encode()))
    assert score.main(arguments("iris", "--input", table)) == 0
    assert "accuracy  0.3333 of 3 labelled rows" in capsys.readouterr().out


def test_several_files_are_numbered_through(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "one").write_bytes(images([3, 1]))
    (place / "two").write_bytes(images([4, 1, 5]))
    words = arguments("mnist", "--print", "4", "--shards", "2", "--input", place / "one", place / "two")
    assert score.main(words) == 0
    assert [(row, k) for row, k, _ in rows(place)] == [(0, 3), (1, 1), (2, 4), (3, 1), (4, 5)]
    samples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Sample")]
    assert samples == [f"Sample {i}: predicted class = {k}" for i, k in enumerate([3, 1, 4, 1])]


def test_an_option_that_is_given_again_adds_to_what_it_said(place: Path, arguments: Arguments) -> None:
    for name in ("one", "two"):
        (place / f"{name}.csv").write_text("\n".join([HEADER, *FLOWERS]))
    first, second = (
        ["--input", place / "one.csv", "--keep", "id"],
        ["--input", place / "two.csv", "--keep", "petal_width"],
    )
    assert score.main(arguments("iris", *first, *second)) == 0
    assert success(place)["rows"] == 2 * len(FLOWERS)
    assert {"id", "petal_width"} <= set(pq.read_table(place / "out").column_names)


def test_a_column_named_as_a_renamed_one_is_kept_beside_it(place: Path, arguments: Arguments) -> None:
    (place / "flowers.csv").write_text(f"{HEADER},label,input_label\n{FLOWERS[0]},setosa,mine\n")
    words = ["--input", place / "flowers.csv", "--format", "jsonl", "--keep", "label", "input_label"]
    assert score.main(arguments("iris", *words)) == 0
    (row,) = (json.loads(line) for path in place.glob("out/part-*") for line in path.read_text().splitlines())
    assert (row["input_label"], row["input_input_label"]) == ("setosa", "mine")


def test_a_job_in_a_folder_goes_on_with_its_version_when_another_is_current(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "flowers.csv").write_text("\n".join([HEADER, *FLOWERS]))
    words = ["--input", place / "flowers.csv", "--shards", "2"]
    first = (place / "store/iris/CURRENT").read_text().strip()
    assert score.main(arguments("iris", *words, "--shard-index", "0")) == 0
    second = models.promote(place / "store", "iris", models.iris_constant(2))
    assert score.main(arguments("iris", *words, "--digest", second)) == 3
    assert f"another job's (--digest {first[:12]}, not {second[:12]})" in capsys.readouterr().err
    assert score.main(arguments("iris", *words)) == 0
    assert success(place)["digest"] == first


def test_bad_rows_are_left_out_and_told_when_asked_for(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, bad in (("a.csv", "x,q,1,1,1"), ("b.csv", "0.2,r,1")):
        (place / name).write_text("\n".join([HEADER, FLOWERS[0], bad, FLOWERS[1]]))
    assert score.main(arguments("iris", "--input", place / "?.csv", "--on-error", "skip")) == 0
    assert rows(place) == [(0, 0, "setosa"), (2, 2, "virginica"), (3, 0, "setosa"), (5, 2, "virginica")]
    told = [json.loads(line) for line in (place / "out" / "_skipped-00000-of-00001.jsonl").read_text().splitlines()]
    assert told == [
        {"file": str(place / "a.csv"), "row": 1, "reason": "petal_width is 'x', expected a finite number"},
        {"file": str(place / "b.csv"), "row": 1, "reason": "3 columns, the header has 5"},
    ]
    assert success(place)["skipped"] == 2
    assert "left out  2 bad rows" in capsys.readouterr().out


def test_a_kept_column_has_the_type_of_the_first_input(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    for file, value in (("a", "one"), ("b", 2)):
        table = pa.table({name: [1.0] for name in names} | {"id": [value]})
        pq.write_table(table, place / f"{file}.parquet")
    words = arguments("iris", "--keep", "id", "--input")
    assert score.main([*words, str(place / "?.parquet")]) == 0
    assert pq.read_table(place / "out")["id"].to_pylist() == ["one", "2"]
    shutil.rmtree(place / "out")
    assert score.main([*words, str(place / "b.parquet"), str(place / "a.parquet")]) == score.REFUSED
    error = capsys.readouterr().err
    assert "id can't be kept in parquet: Failed to parse string: 'one' as a scalar" in error
    assert f"({place / 'a.parquet'})" in error


def test_a_list_can_be_kept_where_the_format_has_lists(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    pq.write_table(pa.table({name: [1.0] for name in names} | {"tags": [["a", "b"]]}), place / "a.parquet")
    words = arguments("iris", "--input", place / "a.parquet", "--keep", "tags", "--format")
    assert score.main([*words, "csv"]) == score.REFUSED
    error = capsys.readouterr().err
    assert "error: tags can't be kept in csv: " in error
    assert error.count("\n") == 1
    shutil.rmtree(place / "out")
    assert score.main([*words, "jsonl"]) == 0
    assert json.loads((place / "out" / "part-00000-of-00001.jsonl").read_text())["tags"] == ["a", "b"]


def test_a_version_is_chosen_by_the_start_of_its_digest(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    current = (place / "store" / "iris" / "CURRENT").read_text()
    other = models.promote(place / "store", "iris", models.iris_constant(1))
    (place / "store" / "iris" / "CURRENT").write_text(current)
    table = place / "flowers.csv"
    table.write_text("\n".join([HEADER, *FLOWERS]))
    assert score.main(arguments("iris", "--digest", other[:10], "--input", table)) == 0
    assert {k for _, k, _ in rows(place)} == {1}
    assert f"model     iris {other}" in capsys.readouterr().out


def test_a_model_is_waited_for(place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "one").write_bytes(images([3]))
    current = place / "store" / "mnist" / "CURRENT"
    words = arguments("mnist", "--input", place / "one", "--wait", "60")
    digest = current.read_text()
    current.unlink()
    began = threading.Event()
    original = time.sleep

    def sleep(seconds: float) -> None:
        began.set()
        original(seconds / 100)

    def promote() -> None:
        began.wait(30)
        current.write_text(digest)

    promoter = threading.Thread(target=promote)
    promoter.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        assert score.main(words) == 0
    promoter.join()
    assert "waiting   for a model of 'mnist'" in capsys.readouterr().out
    current.unlink()
    (place / "out").rename(place / "old")
    assert score.main([*words, "--wait", "0.01"]) == 1
    assert "no model of 'mnist' has been promoted yet" in capsys.readouterr().err


REFUSALS: list[tuple[str, str, bytes, str]] = [
    ("iris", "digits", images([1]), "digits: the model wants 4 (float32) numbers a row, got 784 (uint8)"),
    ("mnist", "small", struct.pack(">4I", 0x0803, 1, 2, 2) + b"\0" * 4, "784 (uint8) numbers a row, got 4 (uint8)"),
    ("mnist", "cut", images([1, 2])[:-1], "cut is cut short: its header promises more than it holds"),
    ("mnist", "cut.gz", gzip.compress(images([1]))[:-20], "cut.gz can't be read: Compressed file ended"),
    ("mnist", "no.gz", b"no gzip", "no.gz can't be read: Not a gzipped file"),
    (
        "mnist",
        "table.csv",
        b"a,b\n1,2\n",
        "table.csv: the model wants idx or .npy files of images, got the header 'a,b'",
    ),
    (
        "mnist",
        "picture.png",
        b"\x89PNG1234",
        "picture.png can't be read: it doesn't begin as an idx file of bytes; other files are .npy, .csv and .parquet",
    ),
    ("mnist", "empty", b"", "empty can't be read: it doesn't begin as an idx file of bytes"),
    ("mnist", "cut.npy", b"\x93NUMPY\x01\0", "cut.npy can't be read: "),
    ("iris", "no.parquet", b"PAR1", "no.parquet can't be read: "),
    ("iris", "other.csv", b"a,b\n1,2\n", "the columns sepal_length, sepal_width, petal_length, petal_width are needed"),
    ("iris", "empty.csv", b"", "got the header ''"),
    ("iris", "none.csv", f"{HEADER}\n".encode(), "there is no row in "),
    (
        "iris",
        "word.csv",
        f"{HEADER}\n{FLOWERS[0]}\n\nx,b,1,1,1\n".encode(),
        "word.csv row 1: petal_width is 'x', expected a finite",
    ),
    (
        "iris",
        "nan.csv",
        f"{HEADER}\n0.2,a,nan,3,1\n".encode(),
        "nan.csv row 0: sepal_length is 'nan', expected a finite",
    ),
    (
        "iris",
        "huge.csv",
        f"{HEADER}\n0.2,a,1e39,3,1\n".encode(),
        "huge.csv row 0: sepal_length is '1e39', expected a finite",
    ),
    ("iris", "short.csv", f"{HEADER}\n0.2,a,1\n".encode(), "short.csv row 0: 3 columns, the header has 5"),
    ("iris", "bytes.csv", f"{HEADER}\n".encode() + b"\xff\xfe", "bytes.csv row 0: 1 columns, the header has 5"),
    ("iris", "return.csv", f"{HEADER}\n{FLOWERS[0]}\r1,2\r3\n".encode(), "return.csv after row 0: a quote within"),
    (
        "iris",
        "quote.csv",
        f'{HEADER}\n0.2,5" a,1,1,1\n0.2,6" a,1,1,1\n'.encode(),
        "quote.csv after row 0: a quote within",
    ),
    ("iris", "label.csv", f"{HEADER},label\n{FLOWERS[0]},rose\n".encode(), "label 'rose' is none of the model's"),
]


@pytest.mark.parametrize(("model", "name", "content", "sentence"), REFUSALS, ids=[name for _, name, *_ in REFUSALS])
def test_a_file_that_can_not_be_scored_is_named_with_its_reason(
    place: Path,
    arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    model: str,
    name: str,
    content: bytes,
    sentence: str,
) -> None:
    (place / name).write_bytes(content)
    assert score.main(arguments(model, "--input", place / name)) == score.REFUSED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert nothing_scored(place)


def test_labels_that_are_not_as_many_as_the_images_are_refused(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "a-images-idx3-ubyte").write_bytes(images([1, 2, 3]))
    (place / "a-labels-idx1-ubyte").write_bytes(labels([1, 2]))
    assert score.main(arguments("mnist", "--input", place / "a-images-idx3-ubyte")) == score.REFUSED
    assert "a-labels-idx1-ubyte: expected 3 labels" in capsys.readouterr().err


def test_missing_data_model_and_version_are_each_said_with_what_to_do(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, status, sentence in (
        (arguments("mnist"), 3, "get it with: nas data mnist"),
        (arguments("mnist", "--input", place / "gone.csv"), 3, "gone.csv: no such file"),
        (arguments("rose", "--input", place / "x.csv"), 1, "no model 'rose'"),
        (arguments("mnist", "--digest", "feed", "--input", place / "x"), 1, "no model 'feed'"),
    ):
        assert score.main(words) == status
        assert sentence in capsys.readouterr().err
        assert nothing_scored(place)


def test_a_version_that_answers_amiss_scores_nothing(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    five = artifact.mlp([(np.zeros((4, 5)), np.zeros(5))], "identity", models.IRIS, models.SPECIES)
    models.kept(place / "store", "iris", five)
    (place / "flowers.csv").write_text("\n".join([HEADER, *FLOWERS]))
    digest = artifact.digest(five)
    assert score.main(arguments("iris", "--digest", digest, "--input", place / "flowers.csv")) == 1
    assert f"{digest[:12]}… doesn't answer with 3 probabilities" in capsys.readouterr().err
    assert not (place / "out" / "_plan.json").exists()


def test_a_place_that_can_not_be_written_is_noticed(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out").write_text("a file, not a folder")
    (place / "one").write_bytes(images([3]))
    assert score.main(arguments("mnist", "--input", place / "one")) == 1
    assert f"can't write to {place / 'out'}" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_job_that_is_ended_leaves_no_process_and_no_traceback(
    place: Path, arguments: Arguments, number: signal.Signals
) -> None:
    with (place / "zeros").open("wb") as file:  # enough for some seconds, in a sparse file
        file.write(struct.pack(">4I", 0x0803, 1_000_000, 28, 28))
        file.truncate(16 + 1_000_000 * 784)
    command = [sys.executable, score.__file__, *arguments("mnist", "--input", place / "zeros"), "--workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    while not process.stdout.readline().startswith("Sample 0"):
        pass
    process.send_signal(number)
    _, error = process.communicate(timeout=30)  # its pipes end when the last of its processes does
    assert process.returncode in (128 + number, -number)
    assert error == ""
    assert not (place / "out" / "_SUCCESS").exists()


def test_the_last_line_gets_through_a_pipe_and_where_it_can_not_be_written_that_is_an_error(
    place: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (place / "one").write_bytes(images([1]))
    command = [sys.executable, score.__file__, *arguments("mnist", "--input", place / "one")]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    assert whole.stdout.splitlines()[-1] == f"output    {place}/out"
    with Path("/dev/full").open("w") as full:
        again = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (again.returncode, again.stderr[:7]) == (1, "error: ")


def test_a_job_that_is_taken_up_says_how_far_it_is_and_counts_no_pause(
    place: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "four").write_bytes(images([1, 2, 3, 4]))
    words = arguments("mnist", "--input", place / "four", "--shards", "2")
    assert score.main([*words, "--shard-index", "0"]) == 0
    assert "goes on" not in capsys.readouterr().out
    record = place / "out/_work/00000.json"  # as if the first shard were of an hour ago
    record.write_text(json.dumps(json.loads(record.read_text()) | {"began": time.time() - 3600}))
    assert score.main(words) == 0
    assert "goes on   1 of 2 shards are done" in capsys.readouterr().out
    timing: Any = success(place)["timing"]
    assert timing["seconds"] < 60


def test_a_reader_that_stops_reading_is_no_error(place: Path, arguments: Arguments) -> None:
    (place / "many").write_bytes(images([1] * 20_000))
    command = [sys.executable, score.__file__, *arguments("mnist", "--input", place / "many", "--print", "20000")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=30)
    process.stderr.close()


def test_a_shard_that_is_none_of_them_is_refused(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--shards", "3", "--shard-index", "3"], ["--shard-index", "0"]):
        with pytest.raises(SystemExit):
            score.main([*arguments("mnist"), *words])
    assert "--shard-index is 0 to 2 with --shards 3" in capsys.readouterr().err


def test_an_option_is_written_out_since_another_one_may_begin_alike(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        score.main([*arguments("mnist"), "--form", "csv"])
    assert "unrecognized arguments: --form csv" in capsys.readouterr().err


def test_a_wrong_option_is_told_in_one_sentence(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        score.main([*arguments("mnist"), "--format", "xml"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument --format: invalid choice: 'xml'")
    assert error.count("\n") == 1
