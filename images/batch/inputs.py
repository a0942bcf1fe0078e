"""What is read: rows of idx, .npy, CSV and Parquet files, as a model takes them, in a stream.

Each kind of file has `survey`, which counts its rows once and marks where some of them start, and `read`, which yields
any range of them. Where its chunks begin and end depends on the range alone, so that scoring a range again gives the
same bytes. `beside` is the file of the labels, if they are in one of their own; `kept` has the pyarrow types of the
columns to carry through.
"""

import bisect
import contextlib
import csv
import glob
import gzip
import itertools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from modelkit import artifact, files

CHUNK = 8192  # rows of an array or a Parquet file in memory at a time
BLOCK = 2**20  # bytes of a CSV file in memory at a time
LONGEST_ROW = 16 * 2**20  # bytes
NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"
UNLABELLED, UNKNOWN = -1, -2

Array = npt.NDArray[Any]
Kept = dict[str, Any]  # pyarrow arrays
Reasons = dict[int, str]  # why rows are bad, by their numbers in the file
Mark = tuple[int, int]  # in a CSV file: the row and byte where a block starts, and last where the rows end


class InputError(Exception):
    """An input that can't be scored: which, where and why."""


class Chunk(NamedTuple):
    """Rows [n, *shape], their numbers [n] in the file, class indices [n] of their labels (or UNLABELLED), kept columns
    by name, and why others are left out. `rows` is overwritten by the next chunk.
    """

    rows: Array
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    kept: Kept
    bad: Reasons


class Wanted(NamedTuple):
    """What a model takes and answers, and the columns to carry through."""

    takes: artifact.Input
    classes: list[str]
    keep: list[str]


def expand(patterns: list[str]) -> list[Path]:
    """The files that paths and globs name, each pattern's sorted, each file once. Raises InputError for none."""
    found: list[Path] = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not paths:
            raise InputError(f"{pattern}: no such file")
        found += map(Path, paths)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file, as an InputError."""
    try:
        yield
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error


class _File:
    """A file of rows for a model."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path, self.wanted = path, wanted
        self.beside: Path | None = None
        self.kept: dict[str, Any] = {}

    def _chunk(self, numbers: Array, rows: Array, cells: Any, labels: Any, kept: Kept, reasons: Reasons) -> Chunk:
        """A chunk without bad rows: with a reason, with a value (shown by its cell [column][row]) or label unknown."""
        takes, classes = self.wanted.takes, self.wanted.classes
        if rows.dtype.kind == "f":
            for i, j in np.argwhere(~(np.abs(rows) <= artifact.FLOAT32_MAX)).tolist():
                feature = takes.features[j] if takes.features else artifact.Feature(f"value {j}", 0, 0)
                reasons.setdefault(int(numbers[i]), feature.refusal(cells[j][i]))
        codes = np.full(len(numbers), UNLABELLED) if labels is None else _codes(labels, classes)
        for i in np.flatnonzero(codes == UNKNOWN).tolist():
            reason = f"label {str(labels[i])!r} is none of the model's ({', '.join(classes)})"
            reasons.setdefault(int(numbers[i]), reason)
        if reasons:
            good = np.flatnonzero(~np.isin(numbers, list(reasons)))
            rows, numbers, codes = rows[good], numbers[good], codes[good]
            kept = {name: column.take(good) for name, column in kept.items()}
        return Chunk(rows.reshape(-1, *takes.shape).astype(takes.dtype, copy=False), numbers, codes, kept, reasons)


class Arrays(_File):
    """An idx or .npy file of rows; labels in a file beside it whose name has `labels` in the place of `images`."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        super().__init__(path, wanted)
        self._rows, takes = _Rows(path), wanted.takes
        size, dtype = math.prod(self._rows.shape), self._rows.dtype
        if size != math.prod(takes.shape) or (takes.dtype == "uint8") != (dtype == np.uint8):
            wants = f"{math.prod(takes.shape)} ({takes.dtype})"
            raise InputError(f"{path}: the model wants {wants} numbers a row, got {size} ({dtype})")
        if wanted.keep or any(feature.values for feature in takes.features or []):
            raise InputError(f"{path} has neither columns to keep nor names of categories: give CSV or Parquet")
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        self.beside = beside if beside != path and beside.exists() else None
        self._labels = _Rows(self.beside) if self.beside else None
        if self._labels and (self._labels.count, self._labels.shape) != (self._rows.count, ()):
            raise InputError(f"{beside}: expected {self._rows.count} labels, as many as there are images")

    def survey(self) -> tuple[int, list[Mark]]:
        return self._rows.count, []

    def read(self, start: int, stop: int, _: list[Mark]) -> Iterator[Chunk]:
        buffer = np.empty((min(CHUNK, stop - start), *self._rows.shape), self._rows.dtype)
        for first in range(start, stop, CHUNK):
            numbers = np.arange(first, min(first + CHUNK, stop))
            rows = self._rows.take(first, buffer[: len(numbers)]).reshape(len(numbers), -1)
            labels = self._labels and self._labels.take(first, np.empty(len(numbers), self._labels.dtype))
            yield self._chunk(numbers, rows, rows.T, labels, {}, {})


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
        else:
            self._file.seek(0)
            try:
                shape, self.dtype = files.idx_shape(self._file.read), np.dtype(np.uint8)
            except ValueError as error:
                raise ValueError(f"{error}; other files are .npy, .csv and .parquet") from error
        self.count, self.shape = shape[0], tuple(shape[1:])
        self._start = self._file.tell()

    def take(self, first: int, out: Array) -> Array:
        """Fill `out` with the rows from `first` on."""
        self._file.seek(self._start + first * math.prod(self.shape) * self.dtype.itemsize)
        if self._file.readinto(out.data.cast("B")) != out.nbytes:  # type: ignore[attr-defined]
            raise InputError(f"{self.path} is cut short: its header promises more than it holds")
        return out


class _Table(_File):
    """Columns by name: the model's features, the label if it is there, and those to keep."""

    def __init__(self, path: Path, wanted: Wanted, header: list[str]) -> None:
        super().__init__(path, wanted)
        got = f"got the header {','.join(header)[:80]!r}"
        if not wanted.takes.features:
            raise InputError(f"{path}: the model wants idx or .npy files of images, {got}")
        self._features = wanted.takes.features
        self._columns = list(dict.fromkeys([*(feature.name for feature in self._features), *wanted.keep]))
        if set(self._columns) - set(header):
            raise InputError(f"{path}: the columns {', '.join(self._columns)} are needed, {got}")
        self._columns += [name for name in ["label"] if name in header and name not in self._columns]
        if twice := [name for name in self._columns if header.count(name) > 1]:
            raise InputError(f"{path} has the column {twice[0]!r} twice")

    def _of(self, table: Any, numbers: Array, reasons: Reasons) -> Chunk:
        """A chunk of a pyarrow table or batch [numbers], without rows that have a reason."""
        cells = [table[feature.name] for feature in self._features]
        rows = np.stack([_numbers(*pair) for pair in zip(cells, self._features, strict=True)], axis=1)
        labels = table["label"] if "label" in self._columns else None
        return self._chunk(numbers, rows, cells, labels, {name: table[name] for name in self.wanted.keep}, reasons)


class Csv(_Table):
    """Text whose header names the columns. Its rows are found by their line ends, outside of quotes."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._file = _open(path)
        first = self._file.readline()
        self._header = next(csv.reader([first.decode("utf-8-sig")]), [])
        super().__init__(path, wanted, self._header)
        self.kept = dict.fromkeys(wanted.keep, pa.string())
        self._start = (0, len(first))

    def survey(self) -> tuple[int, list[Mark]]:
        marks, rest, more = [self._start], b"", True
        while more:
            row, offset = marks[-1]
            more = bool(data := self._file.read(BLOCK))
            block = rest + data + b"\n" * (not more)
            count, end = _whole_rows(block)
            rest = block[end:]
            if len(rest) > (LONGEST_ROW if more else 0):
                raise InputError(f"{self.path} after row {row}: a quote that is never closed, or a row without an end")
            if end:
                marks.append((row + count, offset + end))
        return marks[-1][0], marks

    def read(self, start: int, stop: int, marks: list[Mark]) -> Iterator[Chunk]:
        first = bisect.bisect_right(marks, start, key=lambda mark: mark[0]) - 1
        for (row, offset), (after, end) in itertools.pairwise(marks[first:]):
            if mine := range(max(row, start), min(after, stop)):
                self._file.seek(offset)
                yield self._block(self._file.read(end - offset), range(row, after), mine)

    def _block(self, data: bytes, held: range, mine: range) -> Chunk:
        """The rows `mine` of a block that holds the rows `held`."""
        odd: Reasons = {}

        def leave_out(found: Any) -> str:
            reason = f"{found.actual_columns} columns, the header has {found.expected_columns}"
            odd[held.start + found.number - 1] = reason
            return "skip"

        clean, texts = data.decode(errors="replace").encode(), dict.fromkeys(self._columns, pa.string())
        table = pa_csv.read_csv(
            pa.BufferReader(clean),
            pa_csv.ReadOptions(column_names=self._header, use_threads=False, block_size=len(clean) + 1),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=leave_out),
            pa_csv.ConvertOptions(column_types=texts, include_columns=self._columns),
        )
        if table.num_rows + len(odd) != len(held):
            raise InputError(
                f"{self.path} after row {held.start}: a quote within a value, or a line end other than \\n"
            )
        numbers = np.setdiff1d(held, list(odd), assume_unique=True)
        low, high = np.searchsorted(numbers, [mine.start, mine.stop])
        numbers, table = numbers[low:high], table.slice(low, high - low)
        reasons = {row: reason for row, reason in odd.items() if row in mine}
        for name in self._columns if clean != data else ():
            for i in np.flatnonzero(_pc().match_substring(table[name], "\ufffd")):
                reasons[int(numbers[i])] = f"{name} is not UTF-8, or holds U+FFFD"
        return self._of(table, numbers, reasons)


class Parquet(_Table):
    def __init__(self, path: Path, wanted: Wanted) -> None:
        # Pages are read one after another: a row group may be larger than the memory.
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK)
        super().__init__(path, wanted, self._file.schema_arrow.names)
        self.kept = {name: self._file.schema_arrow.field(name).type for name in wanted.keep}

    def survey(self) -> tuple[int, list[Mark]]:
        return self._file.metadata.num_rows, []

    def read(self, start: int, stop: int, _: list[Mark]) -> Iterator[Chunk]:
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        spans = enumerate(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
        groups = {group: first for group, (first, after) in spans if first < stop and after > start}
        row = min(groups.values(), default=stop)
        for batch in self._file.iter_batches(CHUNK, row_groups=[*groups], columns=self._columns, use_threads=False):
            low, high = max(start - row, 0), min(stop - row, len(batch))
            if low < high:
                yield self._of(batch.slice(low, high - low), np.arange(row + low, row + high), {})
            row += len(batch)


Source = Arrays | Csv | Parquet


def source(path: Path, wanted: Wanted) -> Source:
    """Open a file by the kind its name tells. Raises InputError when the model can't take it."""
    name = path.name.removesuffix(".gz")
    kind: type[Source] = Csv if name.endswith(".csv") else Parquet if name.endswith(".parquet") else Arrays
    with readable(path):
        return kind(path, wanted)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _whole_rows(block: bytes) -> tuple[int, int]:
    """How many rows that aren't blank end in a block, and where the last line does."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if b'"' in block:  # an odd number of quotes before it: inside a quoted value
        ends = ends[np.searchsorted(np.flatnonzero(data == ord('"')), ends) % 2 == 0]
    sizes = np.diff(ends, prepend=-1)
    blank = (sizes == 1) | ((sizes == 2) & (data[ends - 1] == ord("\r")))
    return len(ends) - int(blank.sum()), int(ends[-1]) + 1 if len(ends) else 0


def _numbers(column: Any, feature: artifact.Feature) -> Array:
    """A column as float64, a category as the places of its values; not finite where a cell is bad."""
    if feature.values:
        column = _pc().index_in(column.cast(pa.string()), pa.array(feature.values))
    try:
        numbers = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # some text is no number
        text = _pc().utf8_trim_whitespace(column.cast(pa.string()))
        numbers = _pc().if_else(_pc().match_substring_regex(text, NUMBER), text, "nan").cast(pa.float64())
    return np.asarray(numbers.to_numpy(zero_copy_only=False))


def _codes(labels: Any, classes: list[str]) -> npt.NDArray[np.int64]:
    """Class indices of labels: each a class's name or its number; nothing means unlabelled."""
    names, numbers = [*classes, *map(str, range(len(classes))), "", None], range(len(classes))
    codes = np.array([*numbers, *numbers, UNLABELLED, UNLABELLED, UNKNOWN])
    if isinstance(labels, np.ndarray):
        values, where = np.unique(labels, return_inverse=True)
        texts = [str(value).removesuffix(".0") for value in values.tolist()]
        return codes[[names.index(text) if text in names else -1 for text in texts]][where]
    places = _pc().index_in(labels.cast(pa.string()), pa.array(names, pa.string())).fill_null(len(names))
    return np.asarray(codes[places.to_numpy(zero_copy_only=False)])


def _pc() -> Any:
    """pyarrow.compute, when a table needs it: it takes 30 ms to import, and arrays don't."""
    from pyarrow import compute

    return compute
