"""Own one trial's processes, so that nothing outlives the search: run as `python -I -S supervise.py LOG COMMAND`.

COMMAND runs by `sh -c` in a process group of its own; what it prints goes to LOG and to stdout. On stdin come orders:
"stop SECONDS" (SIGTERM, and SIGKILL if it takes longer) and "kill". The end of stdin means that the search itself was
killed: the trial is stopped too. Exits with the command's status (128 + signal number if a signal ended it) when
the whole group is gone. Standard library only: it starts in milliseconds and imports nothing that could fail.
"""

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ORPHAN_GRACE = 10.0  # seconds a trial has for its model when the search was killed
_OWN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main(log_path: str, command: str) -> int:
    """Run COMMAND to its end; the exit status."""
    for number in _OWN_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # orders come by stdin alone
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    trial = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in _OWN_SIGNALS],
    )
    assert trial.stdout is not None
    output, orders = trial.stdout.fileno(), sys.stdin.fileno()
    os.set_blocking(output, False)
    watched = {output, orders, wake}
    deadline = None
    with Path(log_path).open("ab", buffering=0) as log:
        # The end is that of the process: a child it left behind may hold its output open.
        while trial.poll() is None or (deadline is not None and _alive(trial.pid)):
            wait = 3600.0 if trial.poll() is None else 0.02
            if deadline is not None:
                wait = min(wait, max(0.0, deadline - time.monotonic()))
            ready, _, _ = select.select(watched, [], [], wait)
            if output in ready and not _pass_on(output, log.fileno()):
                watched.discard(output)
            if wake in ready:
                os.read(wake, 4096)
            if orders in ready:
                lines = os.read(orders, 4096).decode().splitlines()
                if not lines:
                    watched.discard(orders)
                for order in lines or [f"stop {ORPHAN_GRACE}"]:
                    if deadline is None and order != "kill":
                        _signal(trial.pid, signal.SIGTERM)
                    grace = 0.0 if order == "kill" else float(order.split()[1])
                    # A later order may only shorten what an earlier one gave.
                    deadline = min(deadline or math.inf, time.monotonic() + grace)
            if deadline is not None and time.monotonic() >= deadline:
                _signal(trial.pid, signal.SIGKILL)
                break
        status = trial.wait()
        while _pass_on(output, log.fileno()):
            pass
        _signal(trial.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _pass_on(source: int, log: int) -> bool:
    """Copy what is there to read; False when nothing is."""
    try:
        data = os.read(source, 65536)
    except BlockingIOError:
        return False
    for target in (log, 1):
        with contextlib.suppress(OSError):  # the search was killed, or the disk is full: the model matters more
            rest = data
            while rest:
                rest = rest[os.write(target, rest) :]
    return bool(data)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
