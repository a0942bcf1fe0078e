"""What is written: predictions as Parquet, CSV or JSON lines, and what labels say of them.

The same predictions give the same bytes: no time and no name of a machine is in any of it.
"""

import csv
import io
import itertools
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

ROW_GROUP = 65536  # rows of a Parquet file that are encoded together, and in memory
DECIMALS = 7  # of probabilities in text: what float32 has
FORMATS = ("parquet", "csv", "jsonl")
CELL, MARGIN, FONT = 44, 12, 13  # pixels

Array = npt.NDArray[Any]


def writer(kind: str, file: IO[bytes], classes: list[str], probabilities: bool, kept: dict[str, Any]) -> Any:
    """A writer of columns row, class, label, p_CLASS (with `probabilities`), and kept ones with their pyarrow types.

    A kept column that has the name of one of these is written as input_NAME.
    Its `write` takes rows' numbers [n], classes [n], probabilities [n, classes] and kept columns; `close` ends it.
    """
    names = ["row", "class", "label", *([f"p_{name}" for name in classes] if probabilities else [])]
    names += [f"input_{name}" if name in names else name for name in kept]
    if kind == "parquet":
        return _Parquet(file, names, classes, kept)
    return _Text(file, names, classes, probabilities, kind == "csv")


class _Text:
    def __init__(self, file: IO[bytes], names: list[str], classes: list[str], probabilities: bool, csv: bool) -> None:
        self._file, self._names, self._classes = file, names, np.array(classes, object)
        self._probabilities, self._csv = probabilities, csv
        if csv:
            self._file.write(_csv([names]))

    def write(self, numbers: Array, best: Array, probabilities: Array, kept: dict[str, Any]) -> None:
        columns = [numbers.tolist(), best.tolist(), self._classes[best].tolist()]
        if self._probabilities:
            columns += probabilities.astype(np.float64).round(DECIMALS).T.tolist()
        columns += [column.to_pylist() for column in kept.values()]
        rows = zip(*columns, strict=True)
        lines = (dict(zip(self._names, row, strict=True)) for row in rows)
        self._file.write(_csv(rows) if self._csv else msgspec.json.Encoder().encode_lines(lines))

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: IO[bytes], names: list[str], classes: list[str], kept: dict[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pa.set_memory_pool(pa.system_memory_pool())  # gives back what a row group took
        types = [pa.int64(), pa.int32(), pa.dictionary(pa.int32(), pa.string())]
        types += [pa.float32()] * (len(names) - 3 - len(kept)) + list(kept.values())
        self._schema = pa.schema(list(zip(names, types, strict=True)))
        self._classes, self._rows = pa.array(classes, pa.string()), 0
        self._buffer: list[Any] = []
        # Every setting that shapes the file is fixed here; readers see a label as text.
        self._file = pq.ParquetWriter(
            file, self._schema, compression="zstd", version="2.6", data_page_version="1.0", store_schema=False,
            use_dictionary=names[2:3] + names[len(names) - len(kept) :], column_encoding={"row": "DELTA_BINARY_PACKED"},
        )  # fmt: skip

    def write(self, numbers: Array, best: Array, probabilities: Array, kept: dict[str, Any]) -> None:
        import pyarrow as pa

        index = pa.array(best.astype(np.int32))
        columns = [pa.array(numbers), index, pa.DictionaryArray.from_arrays(index, self._classes)]
        if len(self._schema) > 3 + len(kept):
            columns += [pa.array(column) for column in np.ascontiguousarray(probabilities.T)]
        columns += list(kept.values())
        self._buffer.append(pa.table(columns, schema=self._schema))
        self._rows += len(numbers)
        while self._rows >= ROW_GROUP:
            self._flush(ROW_GROUP)

    def close(self) -> None:
        try:
            self._flush(self._rows)
            self._file.close()
        finally:
            self._file.is_open = False  # else it tries again when it is collected, and shows a traceback

    def _flush(self, rows: int) -> None:
        import pyarrow as pa

        if rows:
            whole = pa.concat_tables(self._buffer)
            self._file.write_table(whole.slice(0, rows).combine_chunks(), row_group_size=rows)
            self._buffer, self._rows = [whole.slice(rows)], self._rows - rows


def measures(confusion: Array, classes: list[str]) -> dict[str, Any]:
    """Accuracy, and each class's precision, recall and number of rows, of a matrix [label, predicted] of counts.

    None where there is nothing to divide by: a class never predicted has no precision.
    """
    hits, known, guessed = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "rows": int(known.sum()),
        "accuracy": _share(hits.sum(), known.sum()),
        "classes": [
            {"class": name, "rows": int(n), "precision": _share(hit, g), "recall": _share(hit, n)}
            for name, hit, n, g in zip(classes, hits, known, guessed, strict=True)
        ],
        "confusion": confusion.tolist(),
    }


def picture(confusion: Array, classes: list[str], title: str) -> bytes:
    """A confusion matrix [label, predicted] of counts as a PNG, each cell shaded by its share of its row.

    Drawn with Pillow: matplotlib and what it needs would add ten times as much to the image for one picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT)
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in classes]
    left = MARGIN + max(int(font.getlength(name)) for name in [*names, "label"]) + MARGIN
    top = MARGIN + 4 * FONT
    cell = max(CELL, *(int(font.getlength(name)) + MARGIN for name in names))
    side = cell * len(names)
    size = (max(left + side, left + int(font.getlength(title))) + MARGIN, top + side + MARGIN)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.text((left, MARGIN), title, "black", font)
    draw.text((left - MARGIN, top - FONT // 2), "label", "dimgray", font, anchor="rs")
    for i, name in enumerate(names):
        draw.text((left + cell * i + cell // 2, top - FONT // 2), name, "black", font, anchor="ms")
        draw.text((left - MARGIN, top + cell * i + cell // 2), name, "black", font, anchor="rm")
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for row, column in itertools.product(range(len(names)), repeat=2):
        x, y, share = left + cell * column, top + cell * row, float(shares[row, column])
        full = (33, 102, 172) if row == column else (178, 24, 43)  # right is blue, wrong is red
        shade = tuple(round(255 + (end - 255) * share**0.5) for end in full)
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), shade, "gainsboro")
        if count := int(confusion[row, column]):
            ink = "white" if share > 0.3 else "black"
            draw.text((x + cell // 2, y + cell // 2), f"{count}", ink, font, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _share(part: int, whole: int) -> float | None:
    return int(part) / int(whole) if whole else None


def _csv(rows: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
