"""Katib's metrics collector as the stand-in injects it: a container beside the trial's, with the real one's arguments.

It copies the trial's lines to its own output as klog writes them, sends SIGTERM when an early-stopping rule says so,
and fails where the real one does. It runs in the trial's image, which has Python.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

POLL = 0.05
STOPPED = "Training container is early stopped"


def log(text: str) -> None:
    """A line as klog prefixes it."""
    now = time.time()
    stamp = time.strftime("%m%d %H:%M:%S", time.gmtime(now))
    print(f"I{stamp}.{int(now % 1 * 1e6):06d} {os.getpid():7d} main.go:143] {text}", flush=True)


def shell_of(metrics: Path) -> int:
    """The process of the trial's shell, which has the metrics file in its command line. Exits when it is gone."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] in (b"sh", b"bash") and any(str(metrics).encode() in word for word in words[2:]):
                return int(path.parent.name)
    sys.exit("Failed to wait for worker container: unable to find main pid from the process list")


def lines_of(metrics: Path, pid: int):  # type: ignore[no-untyped-def]
    """Whole lines as they come, until the process has ended and its last line is read."""
    rest = ""
    with metrics.open(errors="replace") as file:
        while True:
            alive = Path(f"/proc/{pid}").exists()
            *lines, rest = (rest + file.read()).split("\n")
            yield from lines
            if not alive:
                return
            time.sleep(POLL)


def terminate_child(pid: int) -> None:
    """SIGTERM to the only child of the shell, and a minute for it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(POLL)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("-t", "-m", "-o-type", "-s-db", "-path", "-f", "-stop-rule"):
        parser.add_argument(name, default="")
    args = parser.parse_args()
    metrics = Path(args.path)
    log(f"Trial Name: {args.t}")
    while not metrics.exists():
        time.sleep(POLL)
    pid = shell_of(metrics)
    mark = metrics.parent / f"{pid}.pid"
    filters = [re.compile(f) for f in args.f.split(";") if f]
    name, threshold, comparison, step = (args.stop_rule or ";;;0").split(";")
    values: list[float] = []
    for line in lines_of(metrics, pid):
        log(line)
        values += [float(m[2]) for f in filters for m in f.finditer(line) if m[1] == name]
        if name and len(values) == int(step):
            name = ""  # a rule is asked once
            best = max(values) if args.o_type == "maximize" else min(values)
            if best < float(threshold) if comparison == "less" else best > float(threshold):
                log(STOPPED)
                mark.write_text("early-stopped")
                terminate_child(pid)
                return
    if not mark.exists() or mark.read_text().strip() != "completed":
        sys.exit(f"Failed to wait for worker container: training container is failed, {mark} has no 'completed'")


if __name__ == "__main__":
    main()
