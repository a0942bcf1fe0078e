"""What every image shares: the trial loop, the artifact and the store.

Importing it settles how a process behaves in a pod: numeric libraries get as many threads as the pod
has CPUs (they count the node's otherwise), and files are made so that every pod of the group can write them.
"""

import contextlib
import os
from pathlib import Path


def cpus() -> int:
    """CPUs this process may use: NAS_CPUS, else the smaller of its affinity and its cgroup's quota, at least 1."""
    if asked := os.environ.get("NAS_CPUS"):
        return max(1, int(float(asked)))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        count = min(count, quota // period)
    return max(1, count)


for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, str(cpus()))  # read once, when numpy or torch is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would keep a log for its makers in the home
os.umask(0o002)
