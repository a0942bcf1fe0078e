"""A job: its plan, its shards, and its end. Any number of processes may work on one; each may be killed anywhere.

OUTPUT/_plan.json                         what is scored and how: written first, by one process, for all
OUTPUT/part-00002-of-00008.parquet        a shard, there when it is whole
OUTPUT/_skipped-00002-of-00008.jsonl      the rows it left out, if any
OUTPUT/_metrics.json, _confusion.png      with labels
OUTPUT/_SUCCESS                           written last; its `timing` is all that differs when a job is run again
OUTPUT/_work/                             records, locks and unfinished files until then
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow as pa
from blake3 import blake3
from inputs import Array, Chunk, InputError, Mark, Wanted, expand, readable, source
from modelkit import artifact, cpus, files
from modelkit.files import count
from outputs import Writer, measures, picture

BATCH = 256  # rows onnxruntime gets at once: more don't fit the cache. The same everywhere, for the same bytes
SHARD_ROWS = 2**18  # of a shard where their number isn't given
QUIET = 10.0  # seconds between two lines of progress
PLAN, SUCCESS, WORK = "_plan.json", "_SUCCESS", "_work"

Load = Callable[[str | None], artifact.Model]


class JobError(Exception):
    """A folder that holds another job's output."""


class Request(msgspec.Struct, frozen=True):
    """What is asked for; `shards` 0: as many as the rows need. A plan is found again by it."""

    model: str
    inputs: list[str]
    format: str
    probabilities: bool
    keep: list[str]
    on_error: str
    shards: int


class Pin(msgspec.Struct, frozen=True):
    """A file as it was when the job began."""

    path: str
    size: int
    mtime_ns: int
    blake3: str


class Input(msgspec.Struct, frozen=True):
    """A file of rows, the file of its labels if there is one, and where its rows are."""

    file: Pin
    labels: Pin | None
    rows: int
    marks: list[Mark]


class Plan(msgspec.Struct, frozen=True):
    request: Request
    digest: str
    inputs: list[Input]
    shards: int

    def parts(self, shard: int) -> Iterator[tuple[Input, int, int, int]]:
        """Of a shard: input, the rows start to stop of it, and the number that its first row has in the output."""
        rows, before = sum(part.rows for part in self.inputs), 0
        low, high = rows * shard // self.shards, rows * (shard + 1) // self.shards
        for part in self.inputs:
            start, stop = max(low - before, 0), min(high - before, part.rows)
            if start < stop:
                yield part, start, stop, before
            before += part.rows


class Record(msgspec.Struct, frozen=True):
    """A shard that is done: bad rows left out, and counts of the others [label, predicted], unlabelled last."""

    rows: int
    skipped: int
    counts: list[list[int]]
    began: float
    seconds: float


class Job:
    """A plan, the folder of its output, and the model that the plan names."""

    def __init__(self, output: Path, plan: Plan, model: artifact.Model) -> None:
        self.output, self.plan, self.model = output, plan, model
        self._wanted = Wanted(model.manifest.input, model.manifest.classes, plan.request.keep)
        self._source = source(Path(plan.inputs[0].file.path), self._wanted)
        self._kept = self._source.kept  # the first input says of which types they are

    def over(self, shard: int) -> bool:
        """Whether a shard is done, or the whole job, whose records are gone then."""
        return self._file(shard, "json").exists() or finished(self.output)

    def work(self, mine: range, show: int) -> None:
        """Score the shards that no process has scored or is scoring, then those whose process was killed meanwhile.

        Prints the predictions of the rows below `show`. Raises InputError, OSError, LockError.
        """
        for wait, busy in ((0.0, [files.LockError]), (-1.0, [])):
            for shard in (shard for shard in mine if not self.over(shard)):
                try:
                    with contextlib.suppress(*busy), files.locked(self._file(shard, "lock"), wait):
                        if not self.over(shard):
                            self._score(shard, show)
                except FileNotFoundError:
                    if not finished(self.output):  # else another process ended the job: its locks are gone
                        raise

    def finish(self) -> bool:
        """Write what tells of the whole job, and _SUCCESS, when all shards are done. Whether they are."""
        with files.locked(self.output / ".lock"):
            if not finished(self.output):
                paths = [self._file(shard, "json") for shard in range(self.plan.shards)]
                if not all(path.exists() for path in paths):
                    return False
                _check(self.plan.inputs)
                self._tell([msgspec.json.decode(path.read_bytes(), type=Record) for path in paths])
            shutil.rmtree(self.output / WORK, ignore_errors=True)
            return True

    def _file(self, shard: int, ending: str) -> Path:
        return self.output / WORK / f"{shard:05}.{ending}"

    def _chunks(self, shard: int) -> Iterator[tuple[str, Chunk]]:
        """The rows of a shard, numbered through all inputs, each chunk with its file."""
        for part, start, stop, before in self.plan.parts(shard):
            path = Path(part.file.path)
            if self._source.path != path:  # else a .gz is read on from where the shard before ended
                self._source = source(path, self._wanted)
            with readable(path):
                for chunk in self._source.read(start, stop, part.marks):
                    yield part.file.path, chunk._replace(numbers=chunk.numbers + before)

    def _score(self, shard: int, show: int) -> None:
        """Score a shard, and commit it by renaming: what it left out, itself, and then its record."""
        began, request, classes = time.time(), self.plan.request, self._wanted.classes
        inputs = [part for part, *_ in self.plan.parts(shard)]
        _check(inputs)
        part, skipped = self._file(shard, "part"), self._file(shard, "skipped")
        counts = np.zeros((len(classes) + 1, len(classes)), np.int64)
        with part.open("wb") as file, skipped.open("wb") as left:
            try:
                with contextlib.closing(
                    Writer(request.format, file, classes, request.probabilities, self._kept)
                ) as out:
                    bad = self._write(shard, out, left, counts, show)
            except pa.ArrowException as error:
                raise InputError(f"{', '.join(self._kept)} can't be kept in {request.format}: {error}") from error
            for written in (file, left):
                written.flush()
                os.fsync(written.fileno())
        _check(inputs)
        name = f"{shard:05}-of-{self.plan.shards:05}"
        if bad:
            skipped.replace(self.output / f"_skipped-{name}.jsonl")
        part.replace(self.output / f"part-{name}.{request.format}")
        files.sync_folder(self.output)
        record = Record(int(counts.sum()), bad, counts.tolist(), began, time.time() - began)
        files.write(self._file(shard, "json"), msgspec.json.encode(record))
        done = sum(self.over(other) for other in range(self.plan.shards))
        told = _pace(record.rows, record.seconds) + (f", {count(bad, 'bad row')} left out" if bad else "")
        print(f"shard {shard}: {told}, shards done: {done} of {self.plan.shards}", flush=True)

    def _write(self, shard: int, out: Writer, left: IO[bytes], counts: Array, show: int) -> int:
        """Write a shard's predictions and bad rows, and add to `counts`; how many rows are bad."""
        began, bad = time.time(), 0
        told = began
        for path, chunk in self._chunks(shard):
            if chunk.bad and self.plan.request.on_error == "fail":
                row, reason = min(chunk.bad.items())
                raise InputError(f"{path} row {row}: {reason}; --on-error skip leaves such rows out")
            lines = [{"file": path, "row": row, "reason": reason} for row, reason in sorted(chunk.bad.items())]
            left.write(msgspec.json.Encoder().encode_lines(lines))
            bad += len(lines)
            if len(chunk.rows):
                probabilities = self._probabilities(chunk.rows)
                best = probabilities.argmax(axis=1)
                try:
                    out.write(chunk.numbers, best, probabilities, chunk.kept)
                except pa.ArrowException as error:
                    raise pa.ArrowInvalid(f"{error} ({path})") from error
                _show(chunk.numbers, best, self._wanted.classes, show)
                np.add.at(counts, (chunk.labels, best), 1)  # UNLABELLED is the last
            if time.time() - told > QUIET:
                told = time.time()
                print(f"shard {shard}: {_pace(int(counts.sum()), told - began)}", flush=True)
        return bad

    def _probabilities(self, rows: Array) -> Array:
        return np.concatenate([self.model.predict(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)])

    def _tell(self, records: list[Record]) -> None:
        plan, classes = self.plan, self._wanted.classes
        counts = np.sum([record.counts for record in records], axis=0)
        confusion, rows = counts[:-1], sum(record.rows for record in records)
        spans = np.array(sorted((record.began, record.began + record.seconds) for record in records))
        pauses = np.maximum(spans[1:, 0] - np.maximum.accumulate(spans[:-1, 1]), 0)  # when no process was at work
        seconds = float(spans[:, 1].max() - spans[0, 0] - pauses[pauses > 1].sum())
        success: dict[str, Any] = {
            "model": plan.request.model,
            "digest": plan.digest,
            "inputs": [{"file": part.file, "labels": part.labels, "rows": part.rows} for part in plan.inputs],
            "rows": rows,
            "skipped": sum(record.skipped for record in records),
            "classes": dict(zip(classes, counts.sum(axis=0).tolist(), strict=True)),
        }
        if confusion.any():
            found = measures(confusion, classes)
            success |= {"labelled": found["rows"], "accuracy": found["accuracy"]}
            title = f"{plan.request.model} {plan.digest[:12]}: accuracy {found['accuracy']:.4f} of {found['rows']} rows"
            _put(self.output, "_metrics.json", _json(found))
            _put(self.output, "_confusion.png", picture(confusion, classes, f"{title}; columns: predicted"))
        success["timing"] = {"seconds": seconds, "rows_per_second": rows / max(seconds, 1e-9), "shards": records}
        _put(self.output, SUCCESS, _json(success))


def finished(output: Path) -> bool:
    """Whether a job's output is whole."""
    return (output / SUCCESS).exists()


def begin(output: Path, request: Request, digest: str | None, load: Load) -> Job | None:
    """Take up the job in a folder, or plan it there; None when it is complete already.

    `load` gives the model of a digest, for None the current one. Raises JobError when the folder has another job's
    output, InputError, OSError, LockError.
    """
    held = {path.name for path in output.glob("*")} - {".lock", WORK}
    if held and PLAN not in held:
        raise JobError(f"{output} holds something else ({min(held)}): give another --output")
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output / ".lock"):
        resumed = (output / PLAN).exists()
        return _resume(output, request, digest, load) if resumed else _plan(output, request, load(digest))


def _resume(output: Path, request: Request, digest: str | None, load: Load) -> Job | None:
    try:
        plan = msgspec.json.decode((output / PLAN).read_bytes(), type=Plan)
    except msgspec.DecodeError as error:
        raise JobError(f"{output / PLAN} is damaged ({error}): remove {output}") from error
    pairs = [(name, getattr(plan.request, name), getattr(request, name)) for name in Request.__struct_fields__]
    differs = [f"{name} {held}, not {asked}" for name, held, asked in pairs if held != asked]
    if digest and not plan.digest.startswith(digest):
        differs.append(f"--digest {plan.digest[:12]}, not {digest[:12]}")
    if differs:
        raise JobError(f"{output} is another job's ({'; '.join(differs)}): give another --output")
    _check(plan.inputs)
    planned = {part.file.path for part in plan.inputs}
    if new := [str(path) for path in expand(request.inputs) if str(path) not in planned]:
        raise JobError(f"{output} was begun without {new[0]}: give another --output, or move the file away")
    if finished(output):
        shutil.rmtree(output / WORK, ignore_errors=True)
        return None
    return Job(output, plan, load(plan.digest))


def summary(output: Path) -> str:
    """What _SUCCESS says, for a person."""
    done = msgspec.json.decode((output / SUCCESS).read_bytes())
    timing, place = done["timing"], files.shown(output)
    lines = [f"scored    {_pace(done['rows'], timing['seconds'])}"]
    if done["skipped"]:
        lines.append(f"left out  {count(done['skipped'], 'bad row')}: see {place}/_skipped-*.jsonl")
    lines.append(f"classes   {', '.join(f'{name}: {count}' for name, count in done['classes'].items())}")
    if done.get("labelled"):
        lines.append(f"accuracy  {done['accuracy']:.4f} of {count(done['labelled'], 'labelled row')}")
    return "\n".join([*lines, f"model     {done['model']} {done['digest']}", f"output    {place}"])


def _plan(output: Path, request: Request, model: artifact.Model) -> Job:
    wanted = Wanted(model.manifest.input, model.manifest.classes, request.keep)
    with ThreadPoolExecutor(cpus()) as pool:  # digests, of several files at a time
        inputs = list(pool.map(lambda path: _input(path, wanted), expand(request.inputs)))
    rows = sum(part.rows for part in inputs)
    if not rows:
        raise InputError(f"there is no row in {', '.join(request.inputs)}")
    plan = Plan(request, model.manifest.digest, inputs, request.shards or -(-rows // SHARD_ROWS))
    (output / WORK).mkdir(exist_ok=True)
    _put(output, PLAN, _json(plan))
    print(f"planned   {count(rows, 'row')}, {count(len(inputs), 'file')}, {count(plan.shards, 'shard')}", flush=True)
    return Job(output, plan, model)


def _input(path: Path, wanted: Wanted) -> Input:
    file, opened = _pin(path), source(path, wanted)
    with readable(path):
        rows, marks = opened.survey()
    return Input(file, _pin(opened.beside) if opened.beside else None, rows, marks)


def _pin(path: Path) -> Pin:
    with readable(path), path.open("rb") as file:
        found = os.fstat(file.fileno())
        return Pin(str(path), found.st_size, found.st_mtime_ns, hashlib.file_digest(file, blake3).hexdigest())  # type: ignore[arg-type]


def _check(inputs: list[Input]) -> None:
    """Raises InputError when a file has changed since the job began."""
    for pin in (pin for part in inputs for pin in (part.file, part.labels) if pin):
        with readable(Path(pin.path)):
            now = Path(pin.path).stat()
        if (now.st_size, now.st_mtime_ns) != (pin.size, pin.mtime_ns):
            raise InputError(
                f"{pin.path} has changed since the job began: put it back, or begin another job, with another --output"
            )


def _put(output: Path, name: str, data: bytes) -> None:
    """Write a file of the output by way of _work, so that a kill leaves nothing unfinished beside it."""
    files.write(output / WORK / name, data)
    (output / WORK / name).replace(output / name)
    files.sync_folder(output)


def _pace(rows: int, seconds: float) -> str:
    return f"{count(rows, 'row')} in {seconds:.2f} s ({rows / max(seconds, 1e-9):.0f} rows/s)"


def _show(numbers: Any, best: Any, classes: list[str], show: int) -> None:
    first = numbers < show
    for number, k in zip(numbers[first].tolist(), best[first].tolist(), strict=True):
        name = f" ({classes[k]})" if classes[k] != str(k) else ""
        print(f"Sample {number}: predicted class = {k}{name}", flush=True)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
