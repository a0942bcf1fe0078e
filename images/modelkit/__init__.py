"""What every image shares: the trial loop, the artifact and the store.

Importing it settles how a process behaves in a pod: numeric libraries get as many threads as the pod
has CPUs (they count the node's otherwise), and files are made so that every pod of the group can write them.
"""

import os
from pathlib import Path


def cpus() -> int:
    """CPUs this process may use: NAS_CPUS, else the smaller of its affinity and its cgroup's quota, at least 1."""
    if asked := os.environ.get("NAS_CPUS"):
        return max(1, int(float(asked)))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (_cgroup_v2(), _cgroup_v1()):
        if quota > 0 < period:
            count = min(count, quota // period)
    return max(1, count)


def _cgroup_v2() -> tuple[int, int]:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota), int(period)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return 0, 0


def _cgroup_v1() -> tuple[int, int]:
    folder = Path("/sys/fs/cgroup/cpu")
    try:
        return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return 0, 0


for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, str(cpus()))  # read once, when numpy or torch is imported
os.umask(0o002)
