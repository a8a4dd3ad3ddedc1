"""How many threads the CPU kernels use."""

from __future__ import annotations

import os
import threading

_lock = threading.Lock()
_num_threads: int | None = None


def check_threads(value: int, name: str = "threads") -> int:
    """Return ``value`` if it is a positive whole number, else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1; got {value!r}")
    return value


def _default_num_threads() -> int:
    wish = os.environ.get("DEEPLAB_CRF_NUM_THREADS")
    if wish:
        if not wish.strip().isdigit() or int(wish) < 1:
            raise ValueError(
                f"DEEPLAB_CRF_NUM_THREADS must be a whole number >= 1; got {wish!r}. Unset it to use all cores"
            )
        return int(wish)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(threads: int) -> None:
    """Set the thread count of every later call in this process that does not name its own. Results do not depend on it."""
    global _num_threads
    with _lock:
        _num_threads = check_threads(threads)


def get_num_threads() -> int:
    """The thread count in force: `set_num_threads`, else DEEPLAB_CRF_NUM_THREADS, else the cores of the affinity mask."""
    global _num_threads
    with _lock:
        if _num_threads is None:
            _num_threads = _default_num_threads()
        return _num_threads


def resolve_threads(threads: int | None) -> int:
    """The given count, checked, or the one in force if None."""
    return get_num_threads() if threads is None else check_threads(threads)
