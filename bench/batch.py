"""Batch scoring: speed beside tutorial-style jobs, what a kill -9 costs, and memory.

make bench-batch                         # everything, into bench/results/batch.md
make bench-batch ARGS="speed --runs 1"   # a part of it, printed only
"""

import argparse
import contextlib
import itertools
import json
import os
import pickle
import platform
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from modelkit import artifact
from modelkit.store import Store

ROOT = Path(__file__).parents[1]
SIZES = (784, 256, 256, 10)
MNIST = artifact.Input(dtype="uint8", shape=[784], image=[28, 28])
IRIS = artifact.Input(dtype="float32", shape=[4], features=[artifact.Feature(name, 0, 8) for name in "abcd"])
# A process starts with the peak of the one that forked it: so a small one measures.
SMALL = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""
# Scripts bench/tutorial/batch_NAME.py, and what they do.
JOBS = {
    "loop": "the tutorial's reading, one by one",
    "lean_loop": "one by one, leaner",
    "loader": "the tutorial's DataLoader, 1000 at a time",
    "arrays": "a DataLoader over an array, 1000 at a time",
}
TABLE = "| figure | median | min to max | n | goal |\n| --- | --- | --- | --- | --- |"


class Cost(NamedTuple):
    """What a process and its children took: seconds on the clock and of CPU."""

    wall: float
    cpu: float


def cost(*command: str | Path, core: int | None = None) -> Cost:
    """Run a command to its end, on one core if one is given."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        env=os.environ | ({"OMP_NUM_THREADS": "1"} if core is not None else {}),
        preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime)


def score(home: Path, source: Path, *words: str, model: str = "mnist") -> list[str]:
    """The command line of our job, with an empty folder for its output."""
    shutil.rmtree(home / "out", ignore_errors=True)
    return [
        *[sys.executable, str(ROOT / "images/batch/score.py"), "--store", str(home / "store"), "--model", model],
        *["--input", str(source), "--output", str(home / "out"), "--print", "0", *words],
    ]


def promote(home: Path, name: str, takes: artifact.Input, layers: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Put a network of these layers into the store, as a trial would."""
    classes = [str(k) for k in range(len(layers[-1][1]))]
    scale = np.array(1 / 255) if takes.dtype == "uint8" else None
    data = artifact.mlp(layers, "relu", takes, classes, scale=scale)
    folder = home / "store" / name / "trials/bench/one"
    folder.mkdir(parents=True)
    manifest = artifact.Manifest(
        model=name, digest=artifact.digest(data), size=len(data), input=takes, classes=classes,
        metrics=artifact.Metrics(artifact.Scores(0.5, 0.5, 1, "holdout")), experiment="bench", trial="one",
        parameters={}, seed=0, epoch=1, epochs_run=1, data_digest="", versions={}, created="",
        outcomes=artifact.Outcomes.of(np.ones(1, bool)),
    )  # fmt: skip
    artifact.save(folder, data, manifest)
    Store(home / "store", name).promote(manifest.digest)
    return data


def images(home: Path, rows: int) -> Path:
    """An idx file of random images, its labels beside it."""
    path = home / f"{rows}-images-idx3-ubyte"
    if not path.exists():
        generator = np.random.default_rng(rows)
        with path.open("wb") as file:
            file.write(struct.pack(">4I", 0x0803, rows, 28, 28))
            for start in range(0, rows, 50_000):
                file.write(generator.integers(0, 256, (min(50_000, rows - start), 784), np.uint8).tobytes())
        labels = generator.integers(0, 10, rows, np.uint8).tobytes()
        (home / f"{rows}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, rows) + labels)
    return path


def spread(values: list[float], digits: int = 2) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} | {low:.{digits}f} to {high:.{digits}f} | {len(values)}"


def in_memory(data: bytes, path: Path, core: int) -> Cost:
    """What onnxruntime takes for the rows once they are in memory, 256 at a time, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rows = np.fromfile(path, np.uint8, offset=16).reshape(-1, 784)
    start, used = time.perf_counter(), time.process_time()
    for first in range(0, len(rows), 256):
        session.run(None, {"input": rows[first : first + 256]})
    result = Cost(time.perf_counter() - start, time.process_time() - used)
    os.sched_setaffinity(0, before)
    return result


def speed(home: Path, runs: int, data: bytes) -> Iterator[str]:
    """Whole processes on one core, taken in turns: ours, the tutorial-style JOBS, and onnxruntime alone."""
    rows, core = 500_000, max(os.sched_getaffinity(0))
    source = images(home, rows)
    found: dict[str, list[Cost]] = {name: [] for name in ("ours", *JOBS, "memory")}
    source.read_bytes()  # into the page cache, for all of them
    for run in range(runs):
        found["ours"].append(cost(*score(home, source, "--workers", "1"), core=core))
        for name in JOBS:
            script = ROOT / f"bench/tutorial/batch_{name}.py"
            found[name].append(cost(sys.executable, script, source, home / "model.pkl", home / "loop.csv", core=core))
        found["memory"].append(in_memory(data, source, core))
        print("run", run + 1, {name: round(values[-1].wall, 2) for name, values in found.items()}, flush=True)
    yield f"## {rows} MNIST rows from idx to Parquet, whole process, one core\n\n{TABLE}"
    names = {"ours": "this job", **JOBS, "memory": "onnxruntime alone"}
    for name, text in names.items():
        yield f"| {text}, s by the clock | {spread([one.wall for one in found[name]])} | |"
        yield f"| {text}, s of CPU | {spread([one.cpu for one in found[name]])} | |"
    for name, over, goal in (
        ("loop", "ours", "≥ 15"),
        ("lean_loop", "ours", ""),
        ("loader", "ours", "≥ 7"),
        ("arrays", "ours", ""),
        ("ours", "memory", "≤ 1.35"),
        ("loop", "memory", "the most that a job on onnxruntime can reach"),
        ("lean_loop", "memory", "likewise"),
        ("loader", "memory", "likewise"),
        ("arrays", "memory", "likewise"),
    ):
        pairs = list(zip(found[name], found[over], strict=True))
        text = f"{names[name]} ÷ {names[over]}"
        yield f"| {text}, by the clock | {spread([one.wall / other.wall for one, other in pairs])} | {goal} |"
        yield f"| {text}, by CPU | {spread([one.cpu / other.cpu for one, other in pairs])} | {goal} |"
    yield ""


def scaling(home: Path, runs: int) -> Iterator[str]:
    """One process and two, by the rows scored in a second of CPU."""
    rows = 2_000_000
    source = images(home, rows)
    ratios, faster = [], []
    for run in range(runs):
        one, two = (cost(*score(home, source, "--workers", str(workers))) for workers in (1, 2))
        ratios.append(one.cpu / two.cpu)
        faster.append(one.wall / two.wall)
        print("run", run + 1, one, two, flush=True)
    yield f"## Two processes, {rows} rows\n\n{TABLE}"
    yield f"| rows per CPU-second, of those of one process | {spread(ratios)} | ≥ 0.9 |"
    yield f"| times as fast as one | {spread(faster)} | |\n"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by name, _SUCCESS without its timing."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found["_SUCCESS"] = json.dumps(json.loads(found["_SUCCESS"]) | {"timing": None}).encode()
    return found


def kills(home: Path, count: int) -> Iterator[str]:
    """kill -9 at a random moment of a job, `count` times, each then run again to its end."""
    rows, shards, out = 120_000, 8, home / "out"
    command = score(home, images(home, rows), "--shards", f"{shards}", "--probabilities", "--workers", "1")
    whole = cost(*command).wall
    expected = contents(out)
    chance, identical, resumed, redone, before = random.Random(8), 0, [], [], []
    while len(before) < count:
        shutil.rmtree(out)
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, whole))
            whole = time.perf_counter() - start  # it ended by itself: no kill, and how long it takes now
            continue
        process.kill()
        process.wait()
        done = {path.name for path in out.glob("_work/*.json")}
        started = {path.stem for path in out.glob("_work/*.part")} | {path.name[5:10] for path in out.glob("part-*")}
        started -= {Path(name).stem for name in done}
        if (out / "_SUCCESS").exists():
            done, started = {f"{shard}" for shard in range(shards)}, set()
        start = time.time()
        again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        scored = [line for line in again.stdout.splitlines() if line.startswith("shard ") and "shards done" in line]
        identical += contents(out) == expected
        before.append(len(done))
        redone.append(len(started))
        assert len(scored) + len(done) == shards
        if done and scored:
            timing = json.loads((out / "_SUCCESS").read_text())["timing"]
            resumed.append(min(s["began"] for s in timing["shards"] if s["began"] > start) - start)
        told = f"{len(done)} of {shards} shards were done, {len(scored)} scored after, {len(started)} of them again"
        print(f"kill {len(before)}: {told}; {identical} of {len(before)} identical so far", flush=True)
    yield f"## kill -9 at a random moment, {count} times ({rows} rows, {shards} shards)\n"
    yield f"- byte-identical in the end, the `timing` in _SUCCESS aside: {identical} of {count}"
    yield f"- shards done when killed: {min(before)} to {max(before)}, median {statistics.median(before):.0f}"
    yield f"- shards begun and redone: at most {max(redone)}, in {sum(map(bool, redone))} of {count} kills"
    yield f"\n{TABLE}"
    yield f"| from start to the first new shard, s (where one was done) | {spread(resumed)} | ≤ 0.5 |\n"


def memory(home: Path) -> Iterator[str]:
    """The largest resident size of a process that scores five million rows."""
    rows = 5_000_000
    zeros = home / "zeros-images-idx3-ubyte"
    with zeros.open("wb") as file:  # a sparse file: read like any other, and takes no disk
        file.write(struct.pack(">4I", 0x0803, rows, 28, 28))
        file.truncate(16 + rows * 784)
    table = home / "table.csv"
    block = "".join(f"{i % 7}.{i % 10},{i % 5}.5,{i % 3}.25,0.{i % 10},name-{i}\n" for i in range(100_000))
    with table.open("w") as text:
        text.write("a,b,c,d,name\n")
        for _ in range(rows // 100_000):
            text.write(block)
    yield "## Memory, 5000000 rows, one process\n\n| input | MiB at most | n | goal |\n| --- | --- | --- | --- |"
    cases = [
        ("idx, 3.9 GB", zeros, "thin", ["--probabilities"]),
        ("CSV, a column kept", table, "iris", ["--keep=name"]),
    ]
    for name, source, model, words in cases:
        command = [sys.executable, "-c", SMALL, *score(home, source, "--workers", "1", *words, model=model)]
        used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
        print(name, used, flush=True)
        yield f"| {name} | {used:.0f} | 1 | ≤ 400 |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["speed", "scaling", "kills", "memory"]
    parser.add_argument("parts", nargs="*", default=parts, help=f"of {', '.join(parts)} (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="of speed and scaling (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="default: %(default)s")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # bytecode is kept, as it is in the images
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="nas-bench-") as scratch:
        home = Path(scratch)
        shapes = list(itertools.pairwise(SIZES))
        layers = [(generator.normal(size=(a, b)) / a**0.5, np.zeros(b)) for a, b in shapes]
        data = promote(home, "mnist", MNIST, layers)
        promote(home, "thin", MNIST, [(generator.normal(size=(784, 10)), np.zeros(10))])
        promote(home, "iris", IRIS, [(generator.normal(size=(4, 3)), np.zeros(3))])
        modules: list[torch.nn.Module] = []
        for weights, bias in layers:
            linear = torch.nn.Linear(*weights.shape)
            linear.weight.data, linear.bias.data = torch.tensor(weights.T).float(), torch.tensor(bias).float()
            modules += [linear, torch.nn.ReLU()]
        (home / "model.pkl").write_bytes(pickle.dumps(torch.nn.Sequential(*modules[:-1])))
        made = {
            "speed": lambda: speed(home, args.runs, data),
            "scaling": lambda: scaling(home, args.runs),
            "kills": lambda: kills(home, args.kills),
            "memory": lambda: memory(home),
        }
        used = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "pyarrow", "numpy", "torch"))
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        python = platform.python_version()
        lines = [f"# Batch scoring\n\n{os.cpu_count()} cores ({models[0]}); Python {python}, {used}."]
        lines += [f"A network of {'-'.join(map(str, SIZES))}. Ratios are of runs beside each other.\n"]
        for part in args.parts:
            print(f"-- {part}", flush=True)
            lines += made[part]()
            if args.parts == parts:  # so that what is measured stays when a later part fails
                (ROOT / "bench/results/batch.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
