"""How many threads the CPU kernels use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from deeplab_crf.runtime.checks import MAX_THREADS, shown, whole_number
from deeplab_crf.runtime.locks import ForkSafeLock

_lock = ForkSafeLock()
_num_threads: int | None = None


def check_threads(value: int, name: str = "threads") -> int:
    """Return ``value`` if it is a whole number in ``[1, 1024]``, else raise ValueError."""
    return whole_number(value, name, 1, MAX_THREADS)


def _default_num_threads() -> int:
    wish = os.environ.get("DEEPLAB_CRF_NUM_THREADS", "")
    if wish:
        count = _parsed(wish)
        if count is None or count > MAX_THREADS:
            raise ValueError(
                f"DEEPLAB_CRF_NUM_THREADS must be a whole number in [1, {MAX_THREADS}]; got {shown(wish)}. Unset it to use "
                "OMP_NUM_THREADS or all cores"
            )
        return count
    # A list holds the counts of nested regions, outermost first. What OpenMP ignores, is ignored.
    count = _parsed(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    return min(_usable_cores() if count is None else count, MAX_THREADS)


def _parsed(text: str) -> int | None:
    """Return the positive whole number that ``text`` holds, None if it holds none or one that no machine has threads for."""
    digits = text.strip()
    count = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    return count or None


def _usable_cores() -> int:
    """Return the cores that this process may use: those of its affinity mask (a cpuset shows there too), and no more than the
    quota of its control groups pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process in cores, the smallest of its control groups and their parents.

    Args:
        root: Where ``proc`` and ``sys`` lie.

    Returns:
        The quota, or None without one: no control groups, or no limit.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        names = controllers.split(",")
        if controllers == "":  # version 2
            mounts, read = ["sys/fs/cgroup"], _quota_of_version_2
        elif "cpu" in names:  # version 1
            mounts, read = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"], _quota_of_version_1
        else:
            continue
        group = Path(path.lstrip("/"))
        # A container may see its own group as the root and yet read the path that the host knows: missing groups are left out.
        for mount in mounts:
            quotas += [read(root / mount / each) for each in (group, *group.parents)]
    found = [quota for quota in quotas if quota is not None and quota > 0]
    return min(found, default=None)


def _quota_of_version_2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_of_version_1(group: Path) -> float | None:
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def set_num_threads(threads: int) -> None:
    """Set the thread count of every later call in this process that does not name its own. Results do not depend on it."""
    global _num_threads
    count = check_threads(threads)
    with _lock:
        _num_threads = count


def get_num_threads() -> int:
    """Return the thread count in force: that of `set_num_threads`, else DEEPLAB_CRF_NUM_THREADS, else OMP_NUM_THREADS, else the
    cores that this process may use, by its affinity mask and the CPU quota of its control groups."""
    global _num_threads
    with _lock:
        if _num_threads is None:
            _num_threads = _default_num_threads()
        return _num_threads


def resolve_threads(threads: int | None) -> int:
    """Return the given count, checked, or the one in force if None."""
    return get_num_threads() if threads is None else check_threads(threads)
