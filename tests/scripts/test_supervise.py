"""Orders to the process that owns a trial."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from nas import supervise

DEAF = "trap '' TERM; echo started; while :; do sleep 0.01; done"


@pytest.mark.parametrize("orders", ["60\n0\n", "60\n0.1\n", "0\n"])
def test_of_orders_that_come_together_the_hardest_holds(tmp_path: Path, orders: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, str(tmp_path / "log"), DEAF],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    began = time.monotonic()
    process.stdin.write(orders)
    process.stdin.flush()
    assert process.wait(timeout=30) == 128 + 9
    assert time.monotonic() - began < 20
