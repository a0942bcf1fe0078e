"""The trainers beside the plain tutorial one, and what searches with them come to.

make bench-training ARGS=speed                  # one section into bench/results/training.md; the others of it stay
make bench-training ARGS="speed iris --runs 3"  # some
make bench-training                            # all: about an hour on 2 cores

Sections: speed (an epoch beside the tutorial's), target (seconds to 98 %), shipped (make mnist), best (mnist-best),
tutorial (4 searches a run: 20), stopping (2 searches a run: 10), iris (10-fold of the search's winner). Each takes less
than 20 minutes with 5 runs, best with 1.

Epochs and accuracies don't depend on what else the machine does. Times of one thread are taken as its processor
seconds, which on a quiet machine are the seconds that pass.
"""

import argparse
import contextlib
import importlib.util
import inspect
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/training.md"
DATA = ROOT / ".nas/data"
NAS = str(Path(sys.executable).with_name("nas"))
Row = list[object]


def trainer(image: str, file: str = "train") -> ModuleType:
    """An image's program as a module; with `file`, another one of its folder."""
    spec = importlib.util.spec_from_file_location(
        f"{image}_{file}".replace("-", "_"), ROOT / f"images/{image}/{file}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spread(values: list[float], digits: int) -> Row:
    """Mean, standard deviation, least, most and how many."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [*(f"{v:.{digits}f}" for v in (statistics.mean(values), deviation, min(values), max(values))), len(values)]


@contextlib.contextmanager
def searched(values: str, run: int, *settings: str) -> Iterator[Any]:
    """The history of a search in an empty store."""
    from modelkit.store import Store  # noqa: F401 - settles threads before numpy
    from nas.engine import Places
    from nas.report import history

    with tempfile.TemporaryDirectory(prefix="nas-bench-") as scratch:
        home = Path(scratch)
        for shared in ("data", "tools"):
            (ROOT / ".nas" / shared).mkdir(parents=True, exist_ok=True)
            (home / shared).symlink_to(ROOT / ".nas" / shared)
        command = [NAS, "run", values, "--run", str(run)]
        for setting in settings:
            command += ["--set", setting]
        subprocess.run(command, env=os.environ | {"NAS_HOME": scratch}, stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        model = next((home / "model").iterdir()).name
        yield history.here(Places(ROOT, home), model, None)


def speed(runs: int) -> list[Row]:
    """Processor seconds of an epoch of 60,000 images: 784-128-128-10, batches of 64, one thread, in turns."""
    import torch

    os.environ["NAS_CPUS"] = "1"
    ours, network = trainer("mnist-trainer"), trainer("mnist-trainer", "network")
    _as_torchvision()
    images, labels = ours.read(DATA / "mnist", "train")
    words = "--layers=2 --units=128 --lr=0.003 --batch-size=64 --dropout=0 --export-path=x"
    figures: dict[str, list[float]] = {"tutorial": [], "augmentation=none": [], "augmentation=shift": []}
    trainings = {
        name: network.Training(ours.arguments(f"{words} --{name}".split()), images, labels, 10)
        for name in list(figures)[1:]
    }
    torch.set_num_threads(1)
    tutorial = [sys.executable, str(ROOT / "bench/tutorial/train_mnist.py"), "--epochs=1"]
    for _ in range(runs):
        out = subprocess.run(
            tutorial, env=os.environ | {"NAS_DATA": str(DATA)}, capture_output=True, text=True, check=True
        )
        figures["tutorial"].append(float(out.stdout.split("seconds=")[1].split()[0]))
        print(f"speed: tutorial {figures['tutorial'][-1]:.2f} s", flush=True)
        for name, training in trainings.items():
            start = time.process_time()
            training.epoch()
            figures[name].append(time.process_time() - start)
    rows: list[Row] = [["processor seconds of an epoch", "mean", "sd", "min", "max", "n", "times faster, run by run"]]
    for name, values in figures.items():
        ratios = [a / b for a, b in zip(figures["tutorial"], values, strict=True)]
        faster = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        label = "tutorial: DataLoader, Linear" if name == "tutorial" else f"ours: batch normalisation, average, {name}"
        rows.append([label, *spread(values, 2), faster])
    return rows


def target(runs: int) -> list[Row]:
    """Seconds to 98 % on the test set, one thread, after imports, reading the files included."""
    os.environ["NAS_CPUS"] = "1"
    ours, network = trainer("mnist-trainer"), trainer("mnist-trainer", "network")
    from modelkit import artifact

    _as_torchvision()

    words = (
        "--layers=2 --units=128 --lr=0.012 --batch-size=256 --dropout=0 --epochs=3 --augmentation=none --export-path=x"
    )
    contract, classes = artifact.Input(dtype="uint8", shape=[784], image=[28, 28]), [str(d) for d in range(10)]
    seconds, processor, accuracies, epochs = [], [], [], []
    for seed in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        images, labels = ours.read(DATA / "mnist", "train")
        training = network.Training(ours.arguments([*words.split(), f"--seed={seed}"]), images, labels, 10)
        test_images, test_labels = ours.read(DATA / "mnist", "t10k")
        accuracy, count = 0.0, 0
        while accuracy < 0.98 and count < 3:
            training.epoch()
            probabilities = artifact.predict(training.onnx(contract, classes), test_images.reshape(-1, 784))
            accuracy, count = float((probabilities.argmax(1) == test_labels).mean()), count + 1
        print(f"target seed {seed}: {accuracy:.4f} after {count} epochs", flush=True)
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
        accuracies.append(accuracy)
        epochs.append(count)
    command = [sys.executable, str(ROOT / "bench/tutorial/train_mnist.py"), "--epochs=3"]
    reach = []
    for seed in range(min(runs, 3)):
        environment = os.environ | {"NAS_DATA": str(DATA)}
        out = subprocess.run([*command, f"--seed={seed}"], env=environment, capture_output=True, text=True, check=True)
        reach.append(max(float(text.split()[0]) for text in out.stdout.split("accuracy=")[1:]))
    head: Row = ["784-128-128-10", "mean", "sd", "min", "max", "n"]
    return [
        head,
        ["ours: wall seconds to 98 %", *spread(seconds, 2)],
        ["ours: processor seconds to 98 %", *spread(processor, 2)],
        ["ours: test accuracy then", *spread(accuracies, 4)],
        ["ours: epochs", *spread([float(e) for e in epochs], 1)],
        ["tutorial: best test accuracy in 3 epochs", *spread(reach, 4)],
    ]


def iris(runs: int) -> list[Row]:
    """Repeated stratified 10-fold accuracy (10 repeats, 150 rows) of what `values/iris.yaml` finds, per search."""
    ours = trainer("tabular-trainer")
    import numpy as np
    from modelkit import artifact

    table = ours.read_iris()
    contract = artifact.Input(dtype="float32", shape=[4], features=table.features)
    accuracies, kept = [], []
    for run in range(1, runs + 1):
        with searched("iris", run) as history:
            words = [f"--{k}={v}" for k, v in history.best.assignments.items()]
            epoch = history.manifest.epoch
        right = 0
        for repeat in range(10):
            args = ours.arguments([*words, f"--seed={repeat}", "--export-path=x"])
            for held in ours.stratified(table.labels, 10, seed=100 + repeat):
                share = np.delete(np.arange(150), held)
                known = table._replace(rows=table.rows[share], labels=table.labels[share])
                learner = ours.Learner(args, contract, known)
                for _ in range(epoch):
                    learner.epoch()
                answers = artifact.predict(learner.onnx(), table.rows[held]).argmax(1)
                right += int((answers == table.labels[held]).sum())
        accuracies.append(right / 1500)
        kept.append(float(epoch))
        print(f"iris run {run}: {accuracies[-1]:.4f} at epoch {epoch}, {' '.join(words)}", flush=True)
    return [
        ["the search's winner", "mean", "sd", "min", "max", "searches"],
        ["repeated 10-fold accuracy", *spread(accuracies, 4)],
        ["epoch kept", *spread(kept, 1)],
    ]


def stopping(runs: int) -> list[Row]:
    """Epochs that medianstop saves in `values/iris.yaml`: whole searches are run without it, and then walked through
    by the engine's own rule, trials starting when another ends and an epoch taking as long in each."""
    rows: list[Row] = [
        ["trials at a time", "epochs saved, % of all", "sd", "min", "max", "searches", "best accuracy with − without"]
    ]
    searches = []
    for run in range(1, 2 * runs + 1):
        with searched("iris", run, "experiment.earlyStopping.enabled=false") as history:
            experiment = history.experiment
            searches.append([history.values(trial) for trial in history.trials])
        print(f"stopping run {run}: {sum(map(len, searches[-1]))} epochs without", flush=True)
    experiment.stopping, experiment.min_trials, experiment.start_step = "medianstop", 1, 2  # the chart's default
    for parallel in (1, 2, 3):
        saved, gains = [], []
        for curves in searches:
            epochs, reached = walked(experiment, curves, parallel)
            saved.append(100 * (1 - epochs / sum(map(len, curves))))
            gains.append(reached - max(map(max, curves)))
        mean, deviation, *_ = spread(gains, 4)
        rows.append([parallel, *spread(saved, 1), f"{mean} (sd {deviation})"])
    return rows


def walked(experiment: Any, curves: list[list[float]], parallel: int) -> tuple[int, float]:
    """Epochs and best value of a search whose trials would give `curves`, with the experiment's early stopping."""
    from nas.experiment import Observation

    waiting, running, succeeded = list(curves), [], []
    epochs, reached = 0, 0.0
    while waiting or running:
        while waiting and len(running) < parallel:
            running.append((waiting.pop(0), experiment.rule(succeeded), Observation()))
        for trial in list(running):
            curve, rule, observation = trial
            values = observation.setdefault(experiment.metric, [])
            values.append(curve[len(values)])
            epochs, reached = epochs + 1, max(reached, values[-1])
            stopped = experiment.stops(rule, observation)
            if stopped or len(values) == len(curve):
                running.remove(trial)
                if not stopped:
                    succeeded.append(observation)
    return epochs, reached


def tutorial(runs: int) -> list[Row]:
    """`values/tutorial/mnist.yaml`, 5 random trials with the goal 98 % on validation, over search seeds."""
    reached, epochs = [], []
    for run in range(1, 4 * runs + 1):
        with searched("values/tutorial/mnist.yaml", run) as history:
            reached.append(float(history.value(history.best) >= 0.98))
            epochs.append(float(history.spent()["epochs"]))
        print(f"tutorial run {run}: {'reached' if reached[-1] else 'missed'} after {epochs[-1]:.0f} epochs", flush=True)
    return [
        ["", "mean", "sd", "min", "max", "searches"],
        [f"searches that reach 98 %: {sum(reached):.0f} of {len(reached)}", *spread(reached, 2)],
        ["epochs until the search ended", *spread(epochs, 1)],
    ]


def shipped(runs: int) -> list[Row]:
    """Test accuracy of the model that `values/mnist.yaml` keeps, and wall seconds of the search."""
    accuracies, seconds = [], []
    for run in range(1, runs + 1):
        start = time.monotonic()
        with searched("mnist", run) as history:
            seconds.append(time.monotonic() - start)
            accuracies.append(history.manifest.metrics.test.accuracy)
        print(f"shipped run {run}: {accuracies[-1]:.4f} on the test set, {seconds[-1]:.0f} s", flush=True)
    return [
        ["", "mean", "sd", "min", "max", "searches"],
        ["test accuracy", *spread(accuracies, 4)],
        ["wall seconds of the search", *spread(seconds, 0)],
    ]


def best(runs: int) -> list[Row]:
    """Test accuracy of the model that `values/mnist-best.yaml` keeps, and seconds of its longest trial."""
    accuracies, seconds = [], []
    for run in range(1, runs + 1):
        with searched("mnist-best", run) as history:
            accuracies.append(history.manifest.metrics.test.accuracy)
            seconds.append(max(trial.ended - trial.started for trial in history.trials))
        print(f"best run {run}: {accuracies[-1]:.4f} on the test set, longest trial {seconds[-1]:.0f} s", flush=True)
    return [
        ["", "mean", "sd", "min", "max", "searches"],
        ["test accuracy", *spread(accuracies, 4)],
        ["wall seconds of the longest trial, one core", *spread(seconds, 0)],
    ]


SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "speed": speed,
    "target": target,
    "iris": iris,
    "stopping": stopping,
    "shipped": shipped,
    "tutorial": tutorial,
    "best": best,
}


def _as_torchvision() -> None:
    """MNIST where torchvision looks for it."""
    raw = DATA / "torchvision/MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for path in (DATA / "mnist").glob("*.gz"):
        if not (raw / path.stem).exists():
            import gzip

            (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))


def _write(name: str, text: str) -> None:
    """Put a section into the results, in place of its earlier one."""
    parts: dict[str, str] = {}
    if RESULTS.exists():
        found = re.split(r"^## (\w+)\n", RESULTS.read_text(), flags=re.MULTILINE)
        parts = dict(zip(found[1::2], found[2::2], strict=True))
    parts[name] = f"\n{text}\n"
    body = "".join(f"## {key}\n{parts[key]}" for key in SECTIONS if key in parts)
    RESULTS.write_text(f"# Training, {os.cpu_count()} cores\n\n{body}".rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of: {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="seeds or repetitions (default: %(default)s)")
    args = parser.parse_args()
    for name in args.sections or SECTIONS:
        section = SECTIONS[name]
        head, *rows = section(args.runs)
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        text = f"{inspect.cleandoc(section.__doc__ or '')}\n\n{table}\n"
        print(f"## {name}\n\n{text}", flush=True)
        _write(name, text)


if __name__ == "__main__":
    main()
