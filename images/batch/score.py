"""Score files with a store's current model, or with the one a digest names.

Inputs are idx files of images (their labels beside them, if there), CSV files whose header names the model's features
(and `label`, if known), each also as .gz, or mnist-test. Predictions go to OUTPUT/predictions.csv, whole or not at all;
those of one shard of several, a process each, to OUTPUT/predictions-0-of-4.csv and so on.
"""

import argparse
import csv
import gzip
import io
import itertools
import math
import os
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import modelkit
import numpy as np
import numpy.typing as npt
from modelkit import artifact, files, store

CHUNK = 4096  # rows in memory at a time
FLOAT32_MAX = float(np.finfo(np.float32).max)
EXAMPLE = """example:
  python3 score.py --store .nas/model --model mnist --input mnist-test --output .nas/output/mnist
"""

Chunk = tuple[npt.NDArray[Any], list[str] | None]  # rows [n, *shape] and their labels, if known


class InputError(Exception):
    """An input that can't be scored: which, where and why."""


def read(path: Path, takes: artifact.Input) -> Iterator[Chunk]:
    """The rows of a file, as a model takes them, CHUNK at a time. Raises InputError."""
    try:
        yield from read_csv(path, takes) if path.name.removesuffix(".gz").endswith(".csv") else read_idx(path, takes)
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error


def read_idx(path: Path, takes: artifact.Input) -> Iterator[Chunk]:
    """Images of an idx3 file; labels from the idx1 file of the same name beside it."""
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    with _open(path) as images:
        count, *shape = _idx_header(images, path)
        if takes.dtype != "uint8" or math.prod(shape) != math.prod(takes.shape):
            wants = f"{math.prod(takes.shape)} ({takes.dtype})"
            raise InputError(f"{path}: the model wants {wants} numbers a row, got {math.prod(shape)} (uint8)")
        labels = _labels(beside, count) if beside != path and beside.exists() else None
        for start in range(0, count, CHUNK):
            end = min(start + CHUNK, count)
            rows = np.frombuffer(_take(images, (end - start) * math.prod(shape), path), np.uint8)
            yield rows.reshape(-1, *takes.shape), labels[start:end] if labels else None


def read_csv(path: Path, takes: artifact.Input) -> Iterator[Chunk]:
    """Rows of a table, its columns found by the names in its header; other columns are passed over."""
    names = [feature.name for feature in takes.features or []]
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text)
        header = next(lines, [])
        if not names or set(names) - set(header):
            wants = f"the columns {', '.join(names)}" if names else "idx files of images"
            raise InputError(f"{path}: the model wants {wants}, got the header {','.join(header)[:80]!r}")
        columns, label = [header.index(name) for name in names], header.index("label") if "label" in header else -1
        parsed = (_numbers(row, columns, label, f"{path} line {lines.line_num}") for row in lines if row)
        while block := list(itertools.islice(parsed, CHUNK)):
            values, labels = zip(*block, strict=True)
            yield np.array(values, np.float32).reshape(-1, *takes.shape), list(labels) if label >= 0 else None


def score(model: artifact.Model, inputs: list[Path], output: Path, show: int, shard: int = 0, shards: int = 1) -> None:
    """Score what falls to a shard, print the predictions of the first `show` rows and a summary.

    Shard i of n takes the chunks i, i+n, i+2n, … of all inputs' rows; a row's number counts them all. Raises
    InputError, OSError.
    """
    started, classes, table = time.perf_counter(), model.manifest.classes, io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["row", "class", "label"])
    counts: Counter[str] = Counter()
    start = known = right = 0
    output.mkdir(parents=True, exist_ok=True)  # an unwritable place is noticed before the work is done
    chunks = ((path, *chunk) for path in inputs for chunk in read(path, model.manifest.input))
    for number, (path, rows, labels) in enumerate(chunks):
        if number % shards == shard:
            best = model.predict(rows).argmax(axis=1).tolist()
            names = [classes[k] for k in best]
            writer.writerows(zip(range(start, start + len(best)), best, names, strict=True))
            for i, (k, name) in enumerate(zip(best[: max(0, show - start)], names, strict=False), start):
                print(f"Sample {i}: predicted class = {k}" + (f" ({name})" if name != str(k) else ""), flush=True)
            counts.update(names)
            if labels:
                if unknown := set(labels) - set(classes):
                    raise InputError(f"{path}: label {min(unknown)!r} is none of the model's ({', '.join(classes)})")
                known, right = known + len(labels), right + sum(map(str.__eq__, names, labels))
        start += len(rows)
    target = output / ("predictions.csv" if shards == 1 else f"predictions-{shard}-of-{shards}.csv")
    files.write(target, table.getvalue().encode())
    seconds, total = time.perf_counter() - started, counts.total()
    print(f"scored    {total} rows in {seconds:.2f} s ({total / seconds:.0f} rows/s)")
    print(f"classes   {', '.join(f'{name}: {counts[name]}' for name in classes)}")
    if known:
        print(f"accuracy  {right / known:.4f} ({right} of {known} labelled rows)")
    print(f"model     {model.manifest.model} {model.manifest.digest}")
    print(f"output    {target}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 when something can't be scored or written, and then there is no new output."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=style)
    parser.add_argument("--store", type=Path, default=Path("/model"), help="the store's folder (default: %(default)s)")
    parser.add_argument("--model", required=True, help="the model's name in the store, for example mnist")
    parser.add_argument("--digest", help="score with this version, or enough of its start (default: the current one)")
    parser.add_argument("--input", nargs="+", default=["mnist-test"], help="files, or mnist-test (default)")
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions.csv")
    parser.add_argument("--print", type=int, default=100, help="predictions to print (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=1, help="parts that the rows are split in (default: %(default)s)")
    parser.add_argument("--shard-index", type=int, default=0, help="the part to score, from 0 (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.shard_index < args.shards:
        parser.error(f"--shard-index is 0 to {args.shards - 1} with --shards {args.shards}, not {args.shard_index}")
    mnist = Path(os.environ.get("NAS_DATA", "/data")) / "mnist" / "t10k-images-idx3-ubyte.gz"
    inputs = [mnist if name == "mnist-test" else Path(name) for name in args.input]
    try:
        if mnist in inputs and not mnist.exists():
            raise InputError(f"the MNIST test set is not at {mnist}; get it with: nas data mnist")
        kept = store.Store(args.store, args.model)
        entry = kept.find(args.digest) if args.digest else None
        threads = modelkit.cpus()
        model = artifact.load(entry.folder, entry.manifest.digest, threads) if entry else kept.load(threads=threads)
        score(model, inputs, args.output, args.print, args.shard_index, args.shards)
    except (InputError, store.StoreError, artifact.ArtifactError) as error:
        message = str(error)
    except OSError as error:
        message = store.explain(error, args.output)
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return 1


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _take(file: IO[bytes], size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InputError(f"{path} is cut short: its header promises more than it holds")
    return data


def _idx_header(file: IO[bytes], path: Path) -> list[int]:
    """The dimensions in the header of an idx file of unsigned bytes."""
    magic = file.read(4)
    if magic[:3] != b"\0\0\x08" or len(magic) < 4:
        raise InputError(f"{path} is neither an idx file of bytes nor named .csv: those (or .gz of them) are read")
    return list(struct.unpack(f">{magic[3]}I", _take(file, 4 * magic[3], path)))


def _labels(path: Path, count: int) -> list[str]:
    with _open(path) as file:
        if _idx_header(file, path) != [count]:
            raise InputError(f"{path}: expected {count} labels, as many as there are images")
        return [str(label) for label in _take(file, count, path)]


def _numbers(row: list[str], columns: list[int], label: int, where: str) -> tuple[list[float], str]:
    """The values of the columns, and the label where there is one."""
    try:
        values, name = [float(row[column]) for column in columns], row[label] if label >= 0 else ""
    except (ValueError, IndexError):
        values, name = [math.nan], ""
    if not all(abs(value) <= FLOAT32_MAX for value in values):
        raise InputError(f"{where}: expected a number in each of the model's columns, got {','.join(row)[:80]!r}")
    return values, name


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no temporary file stays
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
