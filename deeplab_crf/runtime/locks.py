"""Locks that a forked child can take, whichever thread held them when it was forked."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from types import TracebackType

_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """A `threading.Lock` for ``with``, open in every forked child.

    The thread that held it does not exist there, so it would never be released. What it guards must be whole between any two
    steps of Python, as a dictionary or a name is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In the child of a thread that forked while it held the lock, the lock is open already.
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def open(self) -> None:
        """Replace the lock by an open one."""
        self._lock = threading.Lock()


def _open_all() -> None:
    for lock in _locks:
        lock.open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
