"""Ctrl-C that does not get lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def remembered_interrupts() -> Iterator[Callable[[], None]]:
    """Within the block, Ctrl-C raises KeyboardInterrupt as ever, and is remembered: the function that the block gets raises
    it again. Python drops the first where it arrives in a ``__del__`` (that of a closed .npz file, say).

    Does nothing where Ctrl-C has another meaning already (ignored, or handled by the program that called us).
    """
    pressed = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
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
        signal.signal(signal.SIGINT, signal.default_int_handler)


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

    ours: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
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
