"""Handling of Ctrl-C and SIGTERM."""

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
    """End the process at once on Ctrl-C while modules are imported.

    Otherwise Ctrl-C raises KeyboardInterrupt as usual. Imports do not reliably pass it on: Python
    drops it in callbacks of its import system, extension modules turn it into other errors, and C++
    code that does not expect it aborts the process. Nothing changes if Ctrl-C already has another
    meaning.

    Args:
        status: The exit status.
        text: Printed on stderr.
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
    """Within the block, raise KeyboardInterrupt on Ctrl-C and remember it.

    Python drops the exception in a ``__del__`` (that of a closed .npz file, say), and it is not
    raised during imports. Nothing changes if Ctrl-C already has another meaning (ignored, or
    handled by the calling program).

    Yields:
        A function that raises KeyboardInterrupt if Ctrl-C was pressed.
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
    """Within the block, remember the first Ctrl-C or SIGTERM, so that work can end well.

    The second Ctrl-C raises KeyboardInterrupt. Signals that already have another meaning keep it.

    Yields:
        A function that returns whether the first one arrived.
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
