"""A body timed both ways."""

from __future__ import annotations

from benchmarks.gpu.clock import Body, Clock
from benchmarks.gpu.section import EVENTS, REPLAY, Section


def time_eagerly(
    section: Section, clock: Clock, name: str, body: Body, repeats: int, *, images: int = 1, target: float | None = None
) -> float:
    """By events around the call as a script makes it, launches included. Returns the median, milliseconds an image."""
    return section.timing(name, EVENTS, clock.milliseconds(body, repeats), images, target).median


def time_replayed(
    section: Section, clock: Clock, name: str, body: Body, repeats: int, *, images: int = 1, target: float | None = None
) -> float | None:
    """By events around replays of a CUDA graph. A body that cannot be captured fails a check; None then."""
    try:
        replay = clock.capture(body)
    except (RuntimeError, ValueError) as error:
        section.check(f"{name}: in a CUDA graph", str(error).strip().split("\n")[0], "captured", False)
        return None
    return section.timing(name, REPLAY, clock.milliseconds(replay.run, repeats), images, target).median
