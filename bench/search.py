"""Accuracy and wall time of the shipped searches over several search seeds, each in a store of its own.

make bench-search                      # both searches, 5 seeds each, into bench/results/search.md
make bench-search ARGS="iris --runs 3"
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modelkit.store import Store

ROOT = Path(__file__).parents[1]


def search(name: str, run: int) -> tuple[float, float, float]:
    """Validation accuracy, test accuracy and wall seconds of one search in an empty store."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for shared in ("data", "tools"):
            (ROOT / ".nas" / shared).mkdir(parents=True, exist_ok=True)
            (home / shared).symlink_to(ROOT / ".nas" / shared)
        start = time.monotonic()
        command = [str(Path(sys.executable).with_name("nas")), "run", name, "--run", str(run)]
        subprocess.run(command, env=os.environ | {"NAS_HOME": scratch}, stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        seconds = time.monotonic() - start
        metrics = Store(home / "model", name).load().manifest.metrics
        assert metrics.test is not None
        return metrics.validation.accuracy, metrics.test.accuracy, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["iris", "mnist"], help="values files (default: iris mnist)")
    parser.add_argument("--runs", type=int, default=5, help="search seeds (default: %(default)s)")
    args = parser.parse_args()
    lines = ["| search | figure | mean | min | max | n |", "| --- | --- | --- | --- | --- | --- |"]
    for name in args.names:
        results = []
        for run in range(1, args.runs + 1):
            results.append(search(name, run))
            print(
                f"{name} run {run}: validation {results[-1][0]:.4f}, test {results[-1][1]:.4f}, {results[-1][2]:.1f} s"
            )
        labels = ("validation accuracy", "test accuracy", "wall seconds")
        for label, values, digits in zip(labels, zip(*results, strict=True), (4, 4, 1), strict=True):
            cells = [f"{f(values):.{digits}f}" for f in (statistics.mean, min, max)]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} | {args.runs} |")
    report = "\n".join(lines) + "\n"
    print(report)
    target = ROOT / "bench/results/search.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(f"# Searches as shipped, {os.cpu_count()} cores\n\n{report}")


if __name__ == "__main__":
    main()
