"""Memory for the kernels' intermediate values, kept from call to call.

A script that refines a folder of images asks for the same tens of megabytes again and again. By sampling, clearing pages
fresh from the operating system took about a tenth of an inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.runtime.locks import ForkSafeLock

# Larger buffers go back to the operating system after use.
_LARGEST_KEPT = 256 * 2**20

_CACHE_LINE = 64

_lock = ForkSafeLock()
_kept: NDArray[np.uint8] | None = None


@contextmanager
def borrowed_workspace(size: int) -> Iterator[NDArray[np.uint8]]:
    """Uninitialised memory of ``size`` bytes. The largest buffer so far (up to 256 MB) is kept for the next caller; callers
    at the same time get memory of their own."""
    global _kept
    with _lock:
        buffer, _kept = _kept, None
    if buffer is None or buffer.size < size:
        buffer = None  # freed before its successor is allocated
        buffer = np.empty(size, np.uint8)
    try:
        yield buffer[:size]
    finally:
        with _lock:
            if buffer.size <= _LARGEST_KEPT and (_kept is None or _kept.size < buffer.size):
                _kept = buffer


@contextmanager
def borrowed_parts(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Addresses of parts of `borrowed_workspace`, of so many bytes each, every one on a cache line boundary."""
    with borrowed_workspace(sum(map(_round_up, sizes)) + _CACHE_LINE) as workspace:
        begin = _round_up(workspace.ctypes.data)
        addresses = []
        for size in sizes:
            addresses.append(begin)
            begin += _round_up(size)
        yield addresses


def _round_up(value: int) -> int:
    """To whole cache lines."""
    return -(-value // _CACHE_LINE) * _CACHE_LINE
