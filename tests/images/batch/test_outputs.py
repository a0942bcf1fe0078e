"""What is written: the same predictions in each format, and what labels say of them."""

import io
import json
from typing import Any

import numpy as np
import outputs
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

CLASSES = ["no", "yes"]


def write(kind: str, pieces: list[int]) -> bytes:
    """Predictions of as many rows as the pieces have together, written piece by piece."""
    buffer, first = io.BytesIO(), 0
    out = outputs.Writer(kind, buffer, CLASSES, True, {"id": pa.string(), "size": pa.int16()})
    for count in pieces:
        numbers = np.arange(first, first + count)
        yes = (numbers % 8 / 8).astype(np.float32)
        kept = {"id": pa.array([f"{n}, a" for n in numbers]), "size": pa.array(numbers % 100, pa.int16())}
        out.write(numbers, (yes > 0.5).astype(np.int64), np.stack([1 - yes, yes], axis=1), kept)
        first += count
    out.close()
    return buffer.getvalue()


def read(kind: str, data: bytes) -> dict[str, list[Any]]:
    if kind == "parquet":
        return pq.read_table(io.BytesIO(data)).to_pydict()
    if kind == "csv":
        return pa_csv.read_csv(io.BytesIO(data)).to_pydict()
    rows = [json.loads(line) for line in data.splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("kind", outputs.FORMATS)
def test_every_format_holds_rows_classes_labels_probabilities_and_kept_columns(kind: str) -> None:
    assert read(kind, write(kind, [3, 6])) == {
        "row": list(range(9)),
        "class": [0, 0, 0, 0, 0, 1, 1, 1, 0],
        "label": ["no"] * 5 + ["yes"] * 3 + ["no"],
        "p_no": [1 - n % 8 / 8 for n in range(9)],
        "p_yes": [n % 8 / 8 for n in range(9)],
        "id": [f"{n}, a" for n in range(9)],
        "size": list(range(9)),
    }


@pytest.mark.parametrize("kind", outputs.FORMATS)
def test_bytes_do_not_depend_on_how_the_rows_come(kind: str) -> None:
    size = outputs.ROW_GROUP
    assert write(kind, [size + 10, 5]) == write(kind, [7, size, 8])


def test_row_groups_are_of_one_size_and_labels_are_text_to_readers() -> None:
    file = pq.ParquetFile(io.BytesIO(write("parquet", [outputs.ROW_GROUP + 5])))
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [outputs.ROW_GROUP, 5]
    assert file.schema_arrow.field("label").type == pa.string()
    assert file.schema_arrow.field("size").type == pa.int16()


@pytest.mark.parametrize("kind", outputs.FORMATS)
def test_a_kept_column_never_takes_the_place_of_another(kind: str) -> None:
    buffer = io.BytesIO()
    out = outputs.Writer(kind, buffer, CLASSES, False, {"label": pa.string(), "id": pa.int64()})
    out.write(np.arange(1), np.array([1]), np.array([[0, 1]]), {"label": pa.array(["no"]), "id": pa.array([7])})
    out.close()
    assert read(kind, buffer.getvalue()) == {
        "row": [0],
        "class": [1],
        "label": ["yes"],
        "input_label": ["no"],
        "id": [7],
    }


def test_a_part_without_rows_is_a_readable_file() -> None:
    assert pq.read_table(io.BytesIO(write("parquet", []))).num_rows == 0
    assert write("csv", []) == b'"row","class","label","p_no","p_yes","id","size"\n'


def test_measures_are_those_of_the_textbook() -> None:
    found = outputs.measures(np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert (found["rows"], found["accuracy"]) == (15, 12 / 15)
    assert found["classes"] == [
        {"class": "a", "rows": 10, "precision": 8 / 9, "recall": 0.8},
        {"class": "b", "rows": 5, "precision": 4 / 6, "recall": 0.8},
        {"class": "c", "rows": 0, "precision": None, "recall": None},
    ]


def test_the_picture_is_blue_where_it_is_right_and_red_where_it_is_wrong() -> None:
    data = outputs.picture(np.array([[90, 10], [0, 50]]), CLASSES, "a model")
    assert data == outputs.picture(np.array([[90, 10], [0, 50]]), CLASSES, "a model")
    image = Image.open(io.BytesIO(data)).convert("RGB")
    colours = [colour for _, colour in image.getcolors(2**20) or []]
    assert (33, 102, 172) in colours  # every `yes` is right
    assert [c for c in colours if c[0] > c[1] + 30 and c[0] > c[2] + 30]
    right = outputs.picture(np.array([[90, 0], [0, 50]]), CLASSES, "a model")
    colours = [colour for _, colour in Image.open(io.BytesIO(right)).convert("RGB").getcolors(2**20) or []]
    assert not [c for c in colours if c[0] > c[1] + 30 and c[0] > c[2] + 30]
