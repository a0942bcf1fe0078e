"""What is read of each kind of file: the rows, whatever range is asked for, and which of them are bad."""

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from idx_files import images, labels
from modelkit import artifact

IRIS = inputs.Wanted(models.IRIS, models.SPECIES, ["id"])
MNIST = inputs.Wanted(models.MNIST, models.DIGITS, [])
NAMES = [feature.name for feature in models.IRIS.features or []]


def read(path: Path, wanted: inputs.Wanted, start: int = 0, stop: int | None = None) -> list[inputs.Chunk]:
    with inputs.readable(path):
        rows, marks = inputs.source(path, wanted).survey()
        found = inputs.source(path, wanted).read(start, rows if stop is None else stop, marks)
        return [chunk._replace(rows=chunk.rows.copy()) for chunk in found]


def joined(chunks: list[inputs.Chunk]) -> tuple[list[int], list[list[float]], list[int], list[Any]]:
    numbers = [n for chunk in chunks for n in chunk.numbers.tolist()]
    rows = [row for chunk in chunks for row in chunk.rows.tolist()]
    found = [k for chunk in chunks for k in chunk.labels.tolist()]
    kept = [v for chunk in chunks for v in chunk.kept.get("id", pa.array([])).to_pylist()]
    return numbers, rows, found, kept


def flowers(count: int) -> tuple[np.ndarray, list[str], list[str]]:
    values = np.random.default_rng(count).uniform(0.1, 8, (count, 4)).astype(np.float32)
    return values, [f'no "{i}",\n{i}' if i % 7 == 3 else f"flower {i}" for i in range(count)], models.SPECIES * count


def as_csv(path: Path, count: int) -> None:
    values, names, species = flowers(count)
    quoted = [name.replace('"', '""') for name in names]
    rows = [f'"{q}",{",".join(map(repr, v.tolist()))},{s}' for q, v, s in zip(quoted, values, species, strict=False)]
    lines = [f"id,{','.join(NAMES)},label", *rows]
    text = "\r\n".join(lines[:9]) + "\r\n\r\n" + "\n".join(lines[9:])
    data = b"\xef\xbb\xbf" + text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def as_parquet(path: Path, count: int) -> None:
    values, names, species = flowers(count)
    table = {"label": species[:count], "id": names, **dict(zip(NAMES, values.T, strict=True))}
    pq.write_table(pa.table(table), path, row_group_size=11)


def as_npy(path: Path, count: int) -> None:
    np.save(path, flowers(count)[0].astype(np.float64))
    np.save(path.with_name("labels.npy"), np.arange(count) % 3)


@pytest.mark.parametrize(("name", "write"), [("a.csv", as_csv), ("a.csv.gz", as_csv), ("a.parquet", as_parquet)])
def test_any_range_of_a_table_is_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path, int], None]
) -> None:
    for size, value in (("BLOCK", 257), ("CHUNK", 7)):  # many small blocks and chunks
        monkeypatch.setattr(inputs, size, value)
    path, count = tmp_path / name, 60
    write(path, count)
    values, names, _ = flowers(count)
    cuts = random.Random(5)
    for _ in range(20):
        start, stop = sorted(cuts.sample(range(count + 1), 2))
        numbers, rows, found, kept = joined(read(path, IRIS, start, stop))
        assert numbers == list(range(start, stop))
        assert rows == values[start:stop].tolist()
        assert found == [i % 3 for i in range(start, stop)]
        assert kept == names[start:stop]


def test_an_array_file_has_its_labels_beside_it(tmp_path: Path) -> None:
    wanted = IRIS._replace(keep=[])
    as_npy(tmp_path / "images.npy", 20)
    numbers, rows, found, _ = joined(read(tmp_path / "images.npy", wanted, 3, 17))
    assert numbers == list(range(3, 17))
    assert rows == flowers(20)[0][3:17].tolist()
    assert found == [i % 3 for i in range(3, 17)]


@pytest.mark.parametrize("known", [[2, 0, 7, 1], [2.0, 0.0, 0.5, 1.0]])
def test_labels_of_an_array_are_numbers_of_classes(tmp_path: Path, known: list[float]) -> None:
    np.save(tmp_path / "images.npy", flowers(4)[0])
    np.save(tmp_path / "labels.npy", np.array(known))
    (chunk,) = read(tmp_path / "images.npy", IRIS._replace(keep=[]), 0, 4)
    assert chunk.labels.tolist() == [2, 0, 1]
    assert chunk.bad == {2: f"label '{known[2]}' is none of the model's (setosa, versicolor, virginica)"}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_is_read_from_any_row(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    digits = [i * 7 % 10 for i in range(40)]
    ending = ".gz" if pack is gzip.compress else ""
    path = tmp_path / f"a-images-idx3-ubyte{ending}"
    path.write_bytes(pack(images(digits)))
    (tmp_path / f"a-labels-idx1-ubyte{ending}").write_bytes(pack(labels(digits)))
    numbers, rows, found, _ = joined(read(path, MNIST, 11, 29))
    assert numbers == list(range(11, 29))
    assert [row.index(255) for row in rows] == found == digits[11:29]


def test_a_table_for_a_model_of_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input": [[0] * 784]}), tmp_path / "a.parquet")
    with pytest.raises(
        inputs.InputError, match=r"the model wants idx or \.npy files of images, got the header 'input'"
    ):
        read(tmp_path / "a.parquet", MNIST)


BAD = {
    1: ("oops,1,1,1,a", "sepal_length is 'oops', expected a finite number"),
    3: ("1,1,1", "3 columns, the header has 5"),
    4: ("1,nan,1,1,a", "sepal_width is 'nan', expected a finite number"),
    5: ("1,1,,1,a", "petal_length is '', expected a finite number"),
    7: ("1,1,1,1e39,a", "petal_width is '1e39', expected a finite number"),
    8: ("1,1,1,1,a,more", "6 columns, the header has 5"),
}


def test_each_bad_row_of_a_csv_file_is_told_with_its_reason(tmp_path: Path) -> None:
    rows = [BAD[i][0] if i in BAD else f'{i},1,1,1,"a\n{i}"' for i in range(10)]
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([f"{','.join(NAMES)},id", *rows, ""]))
    (chunk,) = read(path, IRIS)
    assert chunk.numbers.tolist() == [0, 2, 6, 9]
    assert chunk.rows[:, 0].tolist() == [0, 2, 6, 9]
    assert chunk.kept["id"].to_pylist() == [f"a\n{i}" for i in (0, 2, 6, 9)]
    assert chunk.bad == {i: reason for i, (_, reason) in BAD.items()}


def test_a_category_of_a_csv_file_becomes_its_number_and_an_unknown_one_a_bad_row(tmp_path: Path) -> None:
    features = [artifact.Feature("colour", 0, 1, ["red", "blue"]), artifact.Feature("size", 0, 9)]
    wanted = inputs.Wanted(artifact.Input(dtype="float32", shape=[2], features=features), ["no", "yes"], [])
    (tmp_path / "a.csv").write_text("colour,size\nblue,3\ngreen,1\nred,0.5\n")
    (chunk,) = read(tmp_path / "a.csv", wanted)
    assert chunk.rows.tolist() == [[1, 3], [0, 0.5]]
    assert chunk.bad == {1: "colour is 'green', expected one of red, blue"}


def test_categories_that_look_like_numbers_are_found_by_name_in_every_chunk(tmp_path: Path) -> None:
    features = [artifact.Feature("floor", 0, 2, ["1", "2", "3"]), artifact.Feature("size", 0, 9)]
    wanted = inputs.Wanted(artifact.Input(dtype="float32", shape=[2], features=features), ["no", "yes"], [])
    (tmp_path / "a.csv").write_text("floor,size\n2,3\n3,1\n")
    (chunk,) = read(tmp_path / "a.csv", wanted)
    assert chunk.rows.tolist() == [[1, 3], [2, 1]]
    for floors in ([2, 3, 0], ["2", "3", "0"]):
        pq.write_table(pa.table({"floor": floors, "size": [1.0, 1.0, 1.0]}), tmp_path / "a.parquet")
        (chunk,) = read(tmp_path / "a.parquet", wanted)
        assert chunk.rows.tolist() == [[1, 1], [2, 1]]
        assert chunk.bad == {2: "floor is '0', expected one of 1, 2, 3"}


def test_an_array_for_a_model_with_categories_is_refused(tmp_path: Path) -> None:
    features = [artifact.Feature("floor", 0, 2, ["1", "2", "3"]), artifact.Feature("size", 0, 9)]
    wanted = inputs.Wanted(artifact.Input(dtype="float32", shape=[2], features=features), ["no", "yes"], [])
    np.save(tmp_path / "a.npy", np.array([[2, 1], [0, 1]]))
    with pytest.raises(inputs.InputError, match="nor names of categories: give CSV or Parquet"):
        read(tmp_path / "a.npy", wanted)


def test_a_row_that_is_not_utf_8_is_bad_where_its_text_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"{','.join(NAMES)},id,more\n1,1,1,1,\xe9,\n1,1,1,1,e,\xe9\n".encode("latin-1"))
    (chunk,) = read(tmp_path / "a.csv", IRIS)
    assert chunk.bad == {0: "id is not UTF-8, or holds U+FFFD"}


def test_bad_values_and_labels_of_a_parquet_file_are_told(tmp_path: Path) -> None:
    columns: dict[str, Any] = {name: [1.0, 1.0, 1.0, 1.0, 1.0] for name in NAMES}
    columns["sepal_width"] = [1.0, None, 1.0, float("inf"), 1.0]
    columns |= {"id": [10, 11, 12, 13, 14], "label": ["setosa", "setosa", "rose", None, "2"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (chunk,) = read(tmp_path / "a.parquet", IRIS)
    assert chunk.numbers.tolist() == [0, 4]
    assert chunk.kept["id"].to_pylist() == [10, 14]
    assert chunk.labels.tolist() == [0, 2]
    assert {row: reason.split(",")[0] for row, reason in chunk.bad.items()} == {
        1: "sepal_width is 'None'",
        2: "label 'rose' is none of the model's (setosa",
        3: "sepal_width is 'inf'",
    }


def test_values_of_an_array_that_are_not_finite_are_bad(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 1, 1, 1], [1, np.nan, 1, 1], [1, 1, 1, 1e39]]))
    (chunk,) = read(tmp_path / "a.npy", IRIS._replace(keep=[]))
    assert (chunk.numbers.tolist(), [*chunk.bad]) == ([0], [1, 2])


def test_rows_without_a_label_are_scored_and_not_compared(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{','.join(NAMES)},label,id\n1,1,1,1,,a\n1,1,1,1,setosa,b\n1,1,1,1,1,c\n")
    (chunk,) = read(tmp_path / "a.csv", IRIS)
    assert chunk.labels.tolist() == [inputs.UNLABELLED, 0, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{",".join(NAMES)},id\n1,1,1,1,"never closed\n1,1,1,1,b\n', "after row 0: a quote that is never closed"),
        (f"{','.join(NAMES)},id\n1,1,1,1,a\r1,1,1,1,b\n", "a quote within a value, or a line end other than"),
        (f"{','.join(NAMES)},id,id\n1,1,1,1,a,b\n", "has the column 'id' twice"),
    ],
)
def test_a_csv_file_that_can_not_be_cut_into_rows_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(text, newline="")
    with pytest.raises(inputs.InputError, match=reason):
        read(tmp_path / "a.csv", IRIS)


def test_globs_name_files_in_order_and_each_once(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "[1].csv"):
        (tmp_path / name).touch()
    found = inputs.expand([str(tmp_path / name) for name in ("[1].csv", "?.csv", "b.csv")])
    assert [path.name for path in found] == ["[1].csv", "a.csv", "b.csv"]
    with pytest.raises(inputs.InputError, match="no such file"):
        inputs.expand([str(tmp_path / "*.txt")])


def test_text_of_a_parquet_file_is_read_as_that_of_a_csv_file(tmp_path: Path) -> None:
    table = {name: [1.0] * 3 for name in NAMES} | {"id": [1, 2, 3], "sepal_width": ["1.5", " 2", "two"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (chunk,) = read(tmp_path / "a.parquet", IRIS)
    assert chunk.rows[:, 1].tolist() == [1.5, 2]
    assert chunk.bad == {2: "sepal_width is 'two', expected a finite number"}


def test_an_array_in_column_order_or_of_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(np.ones((3, 4))))
    with pytest.raises(inputs.InputError, match="row by row"):
        read(tmp_path / "a.npy", IRIS._replace(keep=[]))
    buffer = io.BytesIO()
    np.save(buffer, np.array([[1, 2, 3, "x"]], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(buffer.getvalue())
    with pytest.raises(inputs.InputError, match="got object"):
        read(tmp_path / "b.npy", IRIS._replace(keep=[]))


def test_scoring_never_needs_more_than_the_models_own_type(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.int64))
    (chunk,) = read(tmp_path / "a.npy", IRIS._replace(keep=[]))
    assert chunk.rows.dtype == np.float32
    wanted = inputs.Wanted(artifact.Input(dtype="uint8", shape=[4]), models.SPECIES, [])
    with pytest.raises(inputs.InputError, match=r"wants 4 \(uint8\) numbers a row, got 4 \(int64\)"):
        read(tmp_path / "a.npy", wanted)
