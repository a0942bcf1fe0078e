"""What is written: predictions as Parquet, CSV or JSON lines, and what labels say of them.

The same predictions give the same bytes: no time and no name of a machine is in any of it.
"""

import io
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

ROW_GROUP = 65536  # rows that are encoded together, and in memory
DECIMALS = 7  # of probabilities in text: what float32 has
FORMATS = ("parquet", "csv", "jsonl")
MARGIN, FONT = 12, 13  # pixels

Array = npt.NDArray[Any]


class Writer:
    """Writes columns row, class, label, p_CLASS (with `probabilities`), and kept ones with their pyarrow types.

    A kept column that has the name of one of these is written as input_NAME. Raises ValueError for a type that the
    format can't hold.
    """

    def __init__(self, kind: str, file: IO[bytes], classes: list[str], probabilities: bool, kept: dict[str, Any]):
        pa.set_memory_pool(pa.system_memory_pool())  # gives back what a row group took
        self._file, self._classes = file, pa.array(classes, pa.string())
        self._scores = [f"p_{name}" for name in classes] if probabilities else []
        names = ["row", "class", "label", *self._scores]
        renamed = [f"input_{name}" if name.removeprefix("input_") in {*names} & {*kept} else name for name in kept]
        self._score = pa.float32() if kind == "parquet" else pa.float64()
        types = [pa.int64(), pa.int32(), pa.dictionary(pa.int32(), pa.string()), *[self._score] * len(self._scores)]
        self._schema = pa.schema(list(zip([*names, *renamed], [*types, *kept.values()], strict=True)))
        self._waiting = self._schema.empty_table()
        self._out: Any = None  # of JSON lines: there is no writer in pyarrow
        if kind == "csv":
            self._out = pa_csv.CSVWriter(file, self._schema)
            self._out.write_table(self._waiting)
        if kind == "parquet":
            # Every setting that shapes the file is fixed here; readers see a label as text.
            self._out = pq.ParquetWriter(
                file, self._schema, compression="zstd", version="2.6", data_page_version="1.0", store_schema=False,
                use_dictionary=["label", *renamed], column_encoding={"row": "DELTA_BINARY_PACKED"},
            )  # fmt: skip

    def write(self, numbers: Array, best: Array, probabilities: Array, kept: dict[str, Any]) -> None:
        """Add rows: their numbers [n], classes [n], probabilities [n, classes] and kept columns."""
        index = pa.array(best.astype(np.int32))
        scores = list(np.ascontiguousarray(probabilities.T)) if self._scores else []
        if self._score == pa.float64():
            scores = [score.astype(np.float64).round(DECIMALS) for score in scores]
        columns = [pa.array(numbers), index, pa.DictionaryArray.from_arrays(index, self._classes), *scores]
        self._waiting = pa.concat_tables([self._waiting, pa.table([*columns, *kept.values()], schema=self._schema)])
        while len(self._waiting) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what waits, and the file's end."""
        try:
            if len(self._waiting):
                self._flush()
            if self._out:
                self._out.close()
        finally:
            if isinstance(self._out, pq.ParquetWriter):
                self._out.is_open = False  # else it tries again when it is collected, and shows a traceback

    def _flush(self) -> None:
        group, self._waiting = self._waiting.slice(0, ROW_GROUP).combine_chunks(), self._waiting.slice(ROW_GROUP)
        if self._out:
            self._out.write_table(group)
        else:
            self._file.write(msgspec.json.Encoder().encode_lines(group.to_pylist()))


def measures(confusion: Array, classes: list[str]) -> dict[str, Any]:
    """Accuracy, and each class's precision, recall and number of rows, of a matrix [label, predicted] of counts.

    None where there is nothing to divide by: a class never predicted has no precision.
    """

    def share(part: int, whole: int) -> float | None:
        return int(part) / int(whole) if whole else None

    columns = zip(classes, confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0), strict=True)
    return {
        "rows": int(confusion.sum()),
        "accuracy": share(confusion.trace(), confusion.sum()),
        "classes": [
            {"class": name, "rows": int(known), "precision": share(hit, guessed), "recall": share(hit, known)}
            for name, hit, known, guessed in columns
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
    cell = MARGIN + max(int(font.getlength(text)) for text in [*names, "label", f"{confusion.max()}"])
    half, top, side = cell // 2, 4 * FONT, cell * (len(names) + 1)
    image = Image.new("RGB", (max(side, int(font.getlength(title))) + 2 * MARGIN, top + side), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, "black", font)
    draw.text((half, top), "label", "dimgray", font, anchor="mm")
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for row, name in enumerate(names):
        y = top + cell * row + half
        draw.text((cell * (row + 1) + half, top), name, "black", font, anchor="mm")
        draw.text((half, y + half), name, "black", font, anchor="mm")
        for column, share in enumerate(shares[row]):
            x = cell * (column + 1)
            full = (33, 102, 172) if row == column else (178, 24, 43)  # right is blue, wrong is red
            shade = tuple(round(255 + (end - 255) * float(share) ** 0.5) for end in full)
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), shade, "gainsboro")
            if count := int(confusion[row, column]):
                ink = "white" if share > 0.3 else "black"
                draw.text((x + half, y + half), f"{count}", ink, font, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
