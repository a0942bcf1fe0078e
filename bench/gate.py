"""How often the gate promotes a challenger that is no better: simulated pairs of equally good models.

.venv/bin/python bench/gate.py                 # 400 pairs for each kind, into bench/results/gate.md: a minute
.venv/bin/python bench/gate.py --pairs 2000 --level 0.01

A pair goes the whole way: two models of two searches are offered to an empty store, the first becomes current, and the
store's own gate decides on the second. Both are equally good by their making: on each row that is not plain both guess.
"""

import argparse
import tempfile
from pathlib import Path

from modelkit import artifact, store  # isort: skip - before numpy: it settles the number of threads

import numpy as np

RESULTS = Path(__file__).with_name("results") / "gate.md"
KINDS = {
    "150 rows, 10 % hard": (150, 0.1),
    "1,000 rows, 30 % hard": (1000, 0.3),
    "10,000 rows, 3 % hard": (10000, 0.03),
}
TAKES, CLASSES = artifact.Input(dtype="float32", shape=[2]), ["no", "yes"]


def offered(home: store.Store, name: str, right: artifact.Array, gate: artifact.Gate) -> store.Event:
    """The decision on a model of a search of its own that gets these rows right."""
    folder = home.folder / "trials" / name / "one"
    folder.mkdir(parents=True)
    random = np.random.default_rng(len(name))
    model = artifact.mlp([(random.normal(size=(2, 2)), np.zeros(2))], "identity", TAKES, CLASSES)
    scores = artifact.Scores(accuracy=float(right.mean()), loss=0.5, rows=len(right), estimator="holdout")
    artifact.save(
        folder,
        model,
        artifact.Manifest(
            model="demo", digest=artifact.digest(model), size=len(model), input=TAKES, classes=CLASSES,
            metrics=artifact.Metrics(scores), experiment=name, trial="one", parameters={}, seed=0, epoch=1,
            epochs_run=1, data_digest="0" * 64, outcomes=artifact.Outcomes.of(right), gate=gate, versions={},
            created="",
        ),
    )  # fmt: skip
    return home.offer(folder)


def promoted(rows: int, hard: float, seed: int, gate: artifact.Gate) -> bool:
    """Whether the second of two equally good models is promoted."""
    random = np.random.default_rng([seed, rows])
    unsure = random.random(rows) < hard
    with tempfile.TemporaryDirectory(prefix="nas-bench-") as scratch:
        home = store.Store(Path(scratch), "demo")
        events = [
            offered(home, name, np.where(unsure, random.random(rows) < 0.5, True), gate)
            for name in ("champion", "challenger2")
        ]
    return events[1].event == "promoted"


def interval(count: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % confidence interval (1927) of a share."""
    share, middle = count / n, (count / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return max(0.0, middle - half), middle + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="of each kind (default: %(default)s)")
    parser.add_argument("--level", type=float, default=0.05, help="the gate's significance (default: %(default)s)")
    args = parser.parse_args()
    lines = [
        "| equally good models | pairs | challenger promoted | rate | 95 % interval | level | any gain promoted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, (rows, hard) in KINDS.items():
        tested, untested = (
            sum(promoted(rows, hard, seed, artifact.Gate(significance=level)) for seed in range(args.pairs))
            for level in (args.level, 1.0)
        )
        low, high = interval(tested, args.pairs)
        lines.append(
            f"| {kind} | {args.pairs} | {tested} | {tested / args.pairs:.3f} | {low:.3f} to {high:.3f} | {args.level} "
            f"| {untested / args.pairs:.3f} |"
        )
        print(lines[-1], flush=True)
    report = "# How often the gate promotes a challenger that is no better\n\n" + "\n".join(lines) + "\n"
    RESULTS.write_text(report)
    print(f"\n{report}")


if __name__ == "__main__":
    main()
