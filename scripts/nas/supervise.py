"""Own one trial's processes, so that nothing outlives the search: run as `python -I -S supervise.py LOG COMMAND`.

COMMAND runs by `sh -c` in a process group of its own; what it prints goes to LOG and to stdout. A line on stdin orders
it to end: the seconds it has after SIGTERM before SIGKILL comes, 0 for SIGKILL at once. The end of stdin means that
the search itself was killed: the trial is stopped too. Exits with the command's status (128 + signal number if a signal
ended it) when the whole group is gone. Standard library only: it starts in milliseconds and imports nothing that could
fail.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ORPHAN_GRACE = "10"  # seconds a trial has for its model when the search was killed
DRAIN = 5.0  # seconds for the last of the output, which a child that left the group may hold open
_OWN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main(log_path: str, command: str) -> int:
    """Run COMMAND to its end; the exit status."""
    for number in _OWN_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # orders come by stdin alone
    trial = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in _OWN_SIGNALS],
    )
    assert trial.stdout is not None
    stopping, killed = threading.Event(), threading.Event()
    threading.Thread(target=_obey, args=(trial.pid, stopping, killed), daemon=True).start()
    output = threading.Thread(target=_copy, args=(trial.stdout.fileno(), Path(log_path)), daemon=True)
    output.start()
    status = trial.wait()
    while stopping.is_set() and _signal(trial.pid, 0) and not killed.wait(0.02):
        pass  # its children may still be saving
    _signal(trial.pid, signal.SIGKILL)
    output.join(DRAIN)
    return status if status >= 0 else 128 - status


def _obey(group: int, stopping: threading.Event, killed: threading.Event) -> None:
    """Follow the orders on stdin; of several, the one that ends the trial first holds."""

    def kill() -> None:
        _signal(group, signal.SIGKILL)
        killed.set()

    for grace in map(float, itertools.chain(sys.stdin, [ORPHAN_GRACE])):
        first = not stopping.is_set()
        stopping.set()
        if first and grace:
            _signal(group, signal.SIGTERM)
        timer = threading.Timer(grace, kill)
        timer.daemon = True
        timer.start()


def _copy(source: int, log_path: Path) -> None:
    with log_path.open("ab", buffering=0) as log:
        while data := os.read(source, 65536):
            for target in (log.fileno(), 1):
                with contextlib.suppress(OSError):  # the search was killed, or the disk is full: the model matters more
                    os.write(target, data)


def _signal(group: int, number: int) -> bool:
    """Signal a process group (0: only look); False when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    os._exit(main(sys.argv[1], sys.argv[2]))  # past the threads, which may wait on stdin
