"""Ctrl-C that does not get lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"

_usual: Any = signal.default_int_handler  # what Ctrl-C means where it has no other meaning


def leave_while_importing(status: int, text: str) -> None:
    """From now on, Ctrl-C while modules are imported prints ``text`` on stderr and ends the process with ``status``, at once;
    otherwise it raises KeyboardInterrupt as ever.

    An import cannot be relied on to pass KeyboardInterrupt on: Python drops it in the callbacks of its import system, extension
    modules turn it into other errors, and C++ code that does not expect it aborts the process. Does nothing where Ctrl-C has
    another meaning already.
    """
    global _usual
    process = os.getpid()

    def handle(_number: int, frame: FrameType | None) -> None:
        if not _is_importing(frame) or os.getpid() != process:  # a forked worker leaves the last word to its parent
            raise KeyboardInterrupt
        with suppress(Exception):
            sys.stdout.flush()
        os.write(2, f"{text}\n".encode())
        os._exit(status)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    try:
        signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread, which alone hears signals
        return
    _usual = handle


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


@contextmanager
def remembered_interrupts() -> Iterator[Callable[[], None]]:
    """Within the block, Ctrl-C raises KeyboardInterrupt as ever, and is remembered: the function that the block gets raises
    it again. Python drops the first where it arrives in a ``__del__`` (that of a closed .npz file, say); where modules are being
    imported, only that function raises it.

    Does nothing where Ctrl-C has another meaning already (ignored, or handled by the program that called us).
    """
    pressed = False

    def handle(_number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        if not _is_importing(frame):
            raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not _usual:
        yield check
        return
    try:
        signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread, which alone hears signals
        yield check
        return
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, _usual)


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C or SIGTERM only makes the function true that the block gets, so that work can come to a
    good end; the second Ctrl-C raises KeyboardInterrupt.

    Signals that have another meaning already (ignored, or handled by the program that called us) keep it.
    """
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    ours: dict[signal.Signals, Any] = {signal.SIGINT: _usual, signal.SIGTERM: signal.SIG_DFL}
    taken = [number for number, usual in ours.items() if signal.getsignal(number) is usual]
    try:
        for number in taken:
            signal.signal(number, handle)
    except ValueError:  # not in the main thread, which alone hears signals
        taken = []
    try:
        yield lambda: asked
    finally:
        for number in taken:
            signal.signal(number, ours[number])
