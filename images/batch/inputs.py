"""What is read: rows of idx, .npy, CSV and Parquet files, as a model takes them, in a stream.

Each kind of file has `survey`, which counts its rows once, and `read`, which yields any range of them. Where its chunks
begin and end depends on the range alone, so that scoring a range again gives the same bytes. `beside` is the file of
the labels, if they are in one of their own; `kept_types` are the pyarrow types of the columns to carry through.
"""

import bisect
import contextlib
import csv
import glob
import gzip
import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from modelkit import artifact

CHUNK = 8192  # rows in memory at a time
BLOCK = 2**20  # bytes of a CSV file in memory at a time
MARK = 8 * 2**20  # bytes of a CSV file between two marks
LONGEST_ROW = 16 * 2**20  # bytes
FLOAT32_MAX = float(np.finfo(np.float32).max)
UNLABELLED, UNKNOWN = -1, -2

Array = npt.NDArray[Any]
Mark = tuple[int, int, int]  # in a CSV file: the row, line and byte where a row starts


class InputError(Exception):
    """An input that can't be scored: which, where and why."""


class BadRow(NamedTuple):
    """A row that can't be scored, by its number in its file from 0, in a CSV file with its line from 1."""

    file: str
    row: int
    line: int | None
    reason: str


class Chunk(NamedTuple):
    """Rows [n, *shape], their numbers [n] in the file, class indices [n] of their labels (or UNLABELLED), kept columns
    by name, and the rows left out. `rows` is overwritten by the next chunk.
    """

    rows: Array
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    kept: dict[str, Any]
    bad: list[BadRow]


class Wanted(NamedTuple):
    """What a model takes and answers, and the columns to carry through."""

    takes: artifact.Input
    classes: list[str]
    keep: list[str]


def expand(patterns: list[str]) -> list[Path]:
    """The files that paths and globs name, each pattern's sorted. Raises InputError when one names none."""
    found = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not paths:
            raise InputError(f"{pattern}: no such file")
        found += [Path(path) for path in paths]
    if twice := {path for path in found if found.count(path) > 1}:
        raise InputError(f"{min(twice)} is named twice among the inputs")
    return found


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file, as an InputError."""
    try:
        yield
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error


class Arrays:
    """An idx or .npy file of rows; labels in a file beside it whose name has `labels` in the place of `images`."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._rows, self._wanted = _Rows(path), wanted
        takes, dtype = wanted.takes, self._rows.dtype
        size = math.prod(self._rows.shape)
        if size != math.prod(takes.shape) or (takes.dtype == "uint8") != (dtype == np.uint8):
            wants = f"{math.prod(takes.shape)} ({takes.dtype})"
            raise InputError(f"{path}: the model wants {wants} numbers a row, got {size} ({dtype})")
        if wanted.keep:
            raise InputError(f"{path} has no columns to keep: --keep is for CSV and Parquet")
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        self.beside = beside if beside != path and beside.exists() else None
        self._labels = _Rows(self.beside) if self.beside else None
        if self._labels and (self._labels.count, self._labels.shape) != (self._rows.count, ()):
            raise InputError(f"{beside}: expected {self._rows.count} labels, as many as there are images")

    def survey(self) -> tuple[int, list[Mark]]:
        return self._rows.count, []

    def kept_types(self) -> dict[str, Any]:
        return {}

    def read(self, start: int, stop: int, _: list[Mark]) -> Iterator[Chunk]:
        takes, file = self._wanted.takes, str(self._rows.path)
        buffer = np.empty((min(CHUNK, stop - start), *self._rows.shape), self._rows.dtype)
        for first in range(start, stop, CHUNK):
            count = min(CHUNK, stop - first)
            rows = self._rows.take(first, buffer[:count]).reshape(count, *takes.shape)
            labels = np.full(count, UNLABELLED)
            good = _finite(rows)
            bad = [BadRow(file, first + int(i), None, "a value is not finite") for i in np.flatnonzero(~good)]
            if self._labels:
                values = self._labels.take(first, np.empty(count, self._labels.dtype))
                names, places = np.unique(values, return_inverse=True)
                labels = _codes([str(name) for name in names], self._wanted.classes)[places]
                bad += [_unknown(file, first + int(i), values[i], self._wanted) for i in np.flatnonzero(labels < -1)]
                good &= labels != UNKNOWN
            yield _chosen(Chunk(rows, np.arange(first, first + count), labels, {}, bad), good, takes)


class _Rows:
    """An array in an idx or .npy file: `count` rows of `shape` after a header."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, _open(path)
        magic = self._file.read(8)
        if magic[:6] == b"\x93NUMPY":
            header = np.lib.format.read_array_header_1_0 if magic[6] == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, self.dtype = header(self._file)
            if fortran or self.dtype.kind not in "fiu":
                raise InputError(f"{path}: expected numbers, row by row (C order), got {self.dtype}")
        elif magic[:3] == b"\0\0\x08" and len(magic) == 8:
            more = self._file.read(4 * (magic[3] - 1))
            shape, self.dtype = struct.unpack(f">{magic[3]}I", magic[4:] + more), np.dtype(np.uint8)
        else:
            raise InputError(
                f"{path} is no idx file of bytes, nor named .npy, .csv or .parquet: those are read, .gz of them too"
            )
        self.count, self.shape = shape[0], tuple(shape[1:])
        self._start = self._file.tell()

    def take(self, first: int, out: Array) -> Array:
        """Fill `out` with the rows from `first` on."""
        self._file.seek(self._start + first * math.prod(self.shape) * self.dtype.itemsize)
        if self._file.readinto(out.data.cast("B")) != out.nbytes:  # type: ignore[attr-defined]
            raise InputError(f"{self.path} is cut short: its header promises more than it holds")
        return out


class Csv:
    """A table whose header names the columns. Its rows are found by their line ends, outside of quotes."""

    beside: Path | None = None

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path, self._wanted, self._file = path, wanted, _open(path)
        first = self._file.readline()
        self._header = next(csv.reader([first.decode("utf-8-sig")]), [])
        self._label = "label" in self._header
        _check_columns(path, wanted, self._header)
        self._columns = {name: self._header.index(name) for name in _columns(wanted, self._label)}
        self._start = (0, 2, len(first))

    def survey(self) -> tuple[int, list[Mark]]:
        rows, marks = 0, [self._start]
        for _, ends, offset, line in self._blocks(self._start):
            if offset - marks[-1][2] >= MARK:
                marks.append((rows, line, offset))
            rows += len(ends)
        return rows, marks

    def kept_types(self) -> dict[str, Any]:
        import pyarrow as pa

        return dict.fromkeys(self._wanted.keep, pa.string())

    def read(self, start: int, stop: int, marks: list[Mark]) -> Iterator[Chunk]:
        mark = marks[bisect.bisect_right(marks, start, key=lambda mark: mark[0]) - 1]
        row = mark[0]
        for block, ends, _, line in self._blocks(mark):
            low, high = max(start - row, 0), min(stop - row, len(ends))
            if low < high:
                begin = int(ends[low - 1]) if low else 0
                piece = block[begin : int(ends[high - 1])]
                yield self._chunk(piece, row + low, line + block.count(b"\n", 0, begin), high - low)
            row += len(ends)
            if row >= stop:
                return
        raise InputError(f"{self._path} is cut short: {row} rows are left of {stop}")

    def _blocks(self, mark: Mark) -> Iterator[tuple[bytes, Array, int, int]]:
        """Whole rows from a mark on: their bytes, the end of each, and the byte and line where they start."""
        _, line, offset = mark
        self._file.seek(offset)
        rest, more = b"", True
        while more:
            more = bool(data := self._file.read(BLOCK))
            block = rest + data + b"\n" * (not more and bool(rest) and not rest.endswith(b"\n"))
            ends, last = _row_ends(block)
            if len(block) - last > (LONGEST_ROW if more else 0):
                raise InputError(f"{self._path} line {line}: a quote that is never closed, or a row without an end")
            if last:
                yield block[:last], ends, offset, line
                offset, line = offset + last, line + block.count(b"\n", 0, last)
            rest = block[last:]

    def _chunk(self, piece: bytes, first: int, line: int, count: int) -> Chunk:
        """Parse whole rows at once; where that fails, or a row is bad, row by row."""
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        if any(feature.values for feature in self._wanted.takes.features or []):
            return self._row_by_row(piece, first, line, count)  # names of categories, which may look like numbers
        names = [feature.name for feature in self._wanted.takes.features or []]
        types = dict.fromkeys(self._columns, pa.string()) | dict.fromkeys(names, pa.float64())
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(piece),
                pa_csv.ReadOptions(column_names=self._header, use_threads=False, block_size=len(piece) + 1),
                pa_csv.ParseOptions(newlines_in_values=True),
                pa_csv.ConvertOptions(column_types=types, include_columns=list(types)),
            )
        except pa.ArrowInvalid:
            return self._row_by_row(piece, first, line, count)
        chunk = _of_table(table, first, self._path, self._wanted)
        if chunk.bad or table.num_rows != count:
            return self._row_by_row(piece, first, line, count)
        return chunk

    def _row_by_row(self, piece: bytes, first: int, line: int, count: int) -> Chunk:
        import pyarrow as pa

        lines = csv.reader(io.StringIO(piece.decode("utf-8", "surrogateescape"), newline=""))
        good, bad, values = [], [], []
        for number in itertools.count(first):
            row = next((row for row in lines if row), None)
            if row is None:
                break
            try:
                values.append(self._values(row))
                good.append((number, [row[i] for i in self._columns.values()]))
            except ValueError as error:
                bad.append(BadRow(str(self._path), number, line + lines.line_num - 1, str(error)))
        if len(good) + len(bad) != count:
            raise InputError(f"{self._path} after line {line}: a line ends in neither \\n nor \\r\\n")
        rows = np.array(values, np.float32).reshape(-1, *self._wanted.takes.shape)
        columns = dict(zip(self._columns, zip(*(row for _, row in good), strict=True), strict=False))
        labels = _codes(list(columns.get("label", [""] * len(good))), self._wanted.classes)
        kept = {name: pa.array(columns.get(name, []), pa.string()) for name in self._wanted.keep}
        return Chunk(rows, np.array([number for number, _ in good], np.int64), labels, kept, bad)

    def _values(self, row: list[str]) -> list[float]:
        """The model's columns of a row. Raises ValueError with the reason when the row is bad."""
        if len(row) != len(self._header):
            raise ValueError(f"{len(row)} columns, the header has {len(self._header)}")
        try:
            "".join(row[i] for i in self._columns.values()).encode()
        except UnicodeEncodeError:
            raise ValueError("not UTF-8") from None
        values = []
        for feature in self._wanted.takes.features or []:
            values.append(feature.number(row[self._columns[feature.name]]))
        if self._label and _codes([name := row[self._columns["label"]]], self._wanted.classes)[0] == UNKNOWN:
            raise ValueError(_unknown("", 0, name, self._wanted).reason)
        return values


class Parquet:
    """A table with the model's columns by name, or a column `input` of lists for a model without named features."""

    beside: Path | None = None

    def __init__(self, path: Path, wanted: Wanted) -> None:
        import pyarrow.parquet as pq

        # Pages are read one after another: a row group may be larger than the memory.
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK)
        self._path, self._wanted = path, wanted
        names = self._file.schema_arrow.names
        self._label = "label" in names
        _check_columns(path, wanted, names)

    def survey(self) -> tuple[int, list[Mark]]:
        return self._file.metadata.num_rows, []

    def kept_types(self) -> dict[str, Any]:
        return {name: self._file.schema_arrow.field(name).type for name in self._wanted.keep}

    def read(self, start: int, stop: int, _: list[Mark]) -> Iterator[Chunk]:
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        starts = list(itertools.accumulate(sizes, initial=0))
        groups = [i for i in range(len(sizes)) if starts[i] < stop and starts[i + 1] > start]
        row = starts[groups[0]] if groups else stop
        columns = _columns(self._wanted, self._label)
        for batch in self._file.iter_batches(CHUNK, row_groups=groups, columns=columns, use_threads=False):
            low, high = max(start - row, 0), min(stop - row, len(batch))
            if low < high:
                yield _of_table(batch.slice(low, high - low), row + low, self._path, self._wanted)
            row += len(batch)


Source = Arrays | Csv | Parquet


def source(path: Path, wanted: Wanted) -> Source:
    """Open a file by the kind its name tells. Raises InputError when the model can't take it."""
    name = path.name.removesuffix(".gz")
    kind: type[Source] = Csv if name.endswith(".csv") else Parquet if name.endswith(".parquet") else Arrays
    with readable(path):
        return kind(path, wanted)


def read(opened: Source, path: Path, start: int, stop: int, marks: list[Mark]) -> Iterator[Chunk]:
    """The rows `start` to `stop` of a file. Raises InputError."""
    with readable(path):
        yield from opened.read(start, stop, marks)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _columns(wanted: Wanted, label: bool) -> list[str]:
    features = [feature.name for feature in wanted.takes.features or []] or [wanted.takes.name]
    return list(dict.fromkeys([*features, *(["label"] if label else []), *wanted.keep]))


def _check_columns(path: Path, wanted: Wanted, names: list[str]) -> None:
    if not wanted.takes.features and path.suffix != ".parquet":
        raise InputError(
            f"{path}: the model wants idx or .npy files of images, got the header {','.join(names)[:80]!r}"
        )
    needed = _columns(wanted, label=False)
    if set(needed) - set(names):
        raise InputError(f"{path}: the columns {', '.join(needed)} are needed, got the header {','.join(names)[:80]!r}")
    if twice := [name for name in needed if names.count(name) > 1]:
        raise InputError(f"{path} has the column {twice[0]!r} twice")


def _row_ends(block: bytes) -> tuple[Array, int]:
    """Where each row that isn't blank ends, past its line end, and where the last line does."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if b'"' in block:  # an odd number of quotes before it: inside a quoted value
        ends = ends[np.searchsorted(np.flatnonzero(data == ord('"')), ends) % 2 == 0]
    if not len(ends):
        return ends, 0
    starts = np.concatenate([[0], ends[:-1] + 1])
    blank = (ends == starts) | ((ends == starts + 1) & (data[starts] == ord("\r")))
    return ends[~blank] + 1, int(ends[-1]) + 1


def _of_table(table: Any, first: int, path: Path, wanted: Wanted) -> Chunk:
    """A chunk of a pyarrow Table or RecordBatch whose first row is the file's row `first`."""
    import pyarrow as pa

    takes, count = wanted.takes, table.num_rows
    labels = np.full(count, UNLABELLED)
    if takes.features:
        names = [feature.name for feature in takes.features]
        # A text, a date or the like isn't cast: that would accept in one chunk what is an error in the next.
        if odd := [n for n in names if not _numeric(table.schema.field(n).type)]:
            raise InputError(f"{path}: the column {odd[0]} holds {table.schema.field(odd[0]).type}, expected numbers")
        values = np.stack([table[n].cast(pa.float64()).to_numpy(zero_copy_only=False) for n in names], axis=1)
    else:
        column = pa.chunked_array(table[takes.name]).combine_chunks()
        flat = column.flatten()
        if flat.type != takes.dtype or len(flat) != count * math.prod(takes.shape) or column.null_count:
            wants = f"lists of {math.prod(takes.shape)} {takes.dtype}"
            raise InputError(f"{path}: the column {takes.name} has {column.type}, expected {wants}")
        values = flat.to_numpy().reshape(count, -1)
    good, bad = _finite(values) & ~wanted.takes.no_category(values).any(axis=1), []
    for i in np.flatnonzero(~good):
        fits = (np.abs(values[i]) <= FLOAT32_MAX) & ~takes.no_category(values[i : i + 1])[0]
        column = int(np.argmin(fits))
        name = takes.features[column].name if takes.features else takes.name
        bad.append(BadRow(str(path), first + int(i), None, _no_number(name, values[i, column])))
    if "label" in table.schema.names:
        encoded = pa.chunked_array(table["label"]).cast(pa.string()).combine_chunks().dictionary_encode()
        lookup = np.append(_codes(encoded.dictionary.to_pylist(), wanted.classes), UNLABELLED)
        labels = lookup[encoded.indices.fill_null(-1).to_numpy()]
        for i in np.flatnonzero(labels == UNKNOWN):
            bad.append(_unknown(str(path), first + int(i), table["label"][int(i)], wanted))
        good &= labels != UNKNOWN
    kept = {name: table[name] for name in wanted.keep}
    rows = values.reshape(count, *takes.shape)
    return _chosen(Chunk(rows, np.arange(first, first + count), labels, kept, bad), good, takes)


def _chosen(chunk: Chunk, good: Array, takes: artifact.Input) -> Chunk:
    """The chunk as the model takes it, without its bad rows, each told of once."""
    if good.all():
        return chunk._replace(rows=chunk.rows.astype(takes.dtype, copy=False))
    kept = {name: column.take(np.flatnonzero(good)) for name, column in chunk.kept.items()}
    once = {row.row: row for row in reversed(chunk.bad)}
    rows = chunk.rows[good].astype(takes.dtype, copy=False)
    return Chunk(rows, chunk.numbers[good], chunk.labels[good], kept, sorted(once.values()))


def _codes(names: list[str], classes: list[str]) -> npt.NDArray[np.int64]:
    """Class indices of labels, which are a class's name or its number; nothing means unlabelled."""
    known = {str(i): i for i in range(len(classes))} | {name: i for i, name in enumerate(classes)} | {"": UNLABELLED}
    return np.array([known.get(name, UNKNOWN) for name in names], np.int64)


def _finite(values: Array) -> Array:
    """Which rows [n, …] hold only numbers that float32 has."""
    if values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return np.asarray((np.abs(values).reshape(len(values), -1) <= FLOAT32_MAX).all(axis=1))


def _numeric(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))


def _no_number(column: str, value: object) -> str:
    return f"{column} is {str(value)[:40]!r}, expected a finite number"


def _unknown(file: str, row: int, name: object, wanted: Wanted) -> BadRow:
    return BadRow(file, row, None, f"label {str(name)!r} is none of the model's ({', '.join(wanted.classes)})")
