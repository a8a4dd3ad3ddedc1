"""Time on a device: by CUDA events, by replays of a CUDA graph, and kernel by kernel; and by the host's clock in a rehearsal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

WARM_UP = 3
# Kernels that count as one, by a word in their names.
GROUPS = {"sort (CUB)": "RadixSort", "sum (CUB)": "DeviceScan", "memset": "Memset", "memcpy": "Memcpy"}
# Written before every timed run: more than any second-level cache holds. It also gives the host a lead, so that the first launch
# does not wait for it.
FLUSHED_BYTES = 256 << 20

# Cycles that the device waits, to give the host a lead without touching the cache: half a millisecond and more.
LEAD = 1_000_000

Body = Callable[[], Any]


@dataclass(frozen=True)
class Replay:
    """A captured body. result: what it returned; every call of ``run`` fills it again."""

    run: Body
    result: Any


class Clock(Protocol):
    """How long things take on one device."""

    def milliseconds(self, body: Body, repeats: int) -> list[float]:
        """Of every repetition, each from a cold cache."""

    def device_milliseconds(self, body: Body, repeats: int, *, cold: bool) -> list[float]:
        """The same without the host: the body's launches are queued before the device begins. Not cold: the caches are as the
        repetition before left them."""

    def capture(self, body: Body) -> Replay:
        """The body as one CUDA graph. Raises RuntimeError where it cannot be one."""

    def kernels(self, body: Body, repeats: int) -> dict[str, list[float]]:
        """Microseconds of every run of every kernel, by the kernel's short name, over all repetitions."""


class CudaClock:
    """By events of the GPU itself."""

    def __init__(self) -> None:
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")

    def milliseconds(self, body: Body, repeats: int) -> list[float]:
        """Each repetition begins on an idle device and from a cold cache."""
        return self._timed(body, repeats, self._flushed.zero_)

    def device_milliseconds(self, body: Body, repeats: int, *, cold: bool) -> list[float]:
        """The device waits first, for longer than the host takes to queue a few launches."""

        def before() -> None:
            if cold:
                self._flushed.zero_()
            torch.cuda._sleep(LEAD)

        return self._timed(body, repeats, before)

    def _timed(self, body: Body, repeats: int, before: Body) -> list[float]:
        for _ in range(WARM_UP):
            body()
        result = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            before()
            begin.record()
            body()
            end.record()
            torch.cuda.synchronize()
            result.append(begin.elapsed_time(end))
        return result

    def capture(self, body: Body) -> Replay:
        """Warmed up on a side stream first, as torch asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = body()
        return Replay(graph.replay, result)

    def kernels(self, body: Body, repeats: int) -> dict[str, list[float]]:
        """By the profiler, inside the whole body: caches are as warm as what runs before leaves them."""
        for _ in range(WARM_UP):
            body()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(repeats):
                body()
            torch.cuda.synchronize()
        events = [event for event in profile.events() if event.device_type.name == "CUDA"]
        return durations_by_name((event.name, event.time_range.elapsed_us()) for event in events)


class HostClock:
    """The same for a rehearsal on the CPU. Operators of this package stand in for kernels."""

    def milliseconds(self, body: Body, repeats: int) -> list[float]:
        """By the host's clock."""
        body()
        result = []
        for _ in range(repeats):
            began = time.perf_counter()
            body()
            result.append(1e3 * (time.perf_counter() - began))
        return result

    def device_milliseconds(self, body: Body, repeats: int, *, cold: bool) -> list[float]:
        """The same."""
        return self.milliseconds(body, repeats)

    def capture(self, body: Body) -> Replay:
        """There are no graphs: the body itself."""
        return Replay(body, body())

    def kernels(self, body: Body, repeats: int) -> dict[str, list[float]]:
        """Operators of this package."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(repeats):
                body()
        events = [event for event in profile.events() if event.name.startswith("deeplab_crf::")]
        return durations_by_name((event.name, event.time_range.elapsed_us()) for event in events)


def clock_for(device: str) -> Clock:
    """Of a device."""
    return CudaClock() if device == "cuda" else HostClock()


def durations_by_name(events: Any) -> dict[str, list[float]]:
    """Durations of (name, duration) pairs by `short_name`, in the order of first appearance."""
    result: dict[str, list[float]] = {}
    for name, duration in events:
        result.setdefault(short_name(name), []).append(float(duration))
    return result


def short_name(kernel: str) -> str:
    """Of a kernel as the profiler calls it: without namespace, template arguments and parameters; `GROUPS` by what they do. A float
    kernel's variant in double, which leaves at once where no image needs it, has a name of its own."""
    for name, word in GROUPS.items():
        if word in kernel:
            return name
    found = re.search(r"deeplab_crf::(?:\w+::)*(\w+)(<float, double)?", kernel)
    if found:
        return found.group(1) + (" (double)" if found.group(2) else "")
    return re.sub(r"[<(].*", "", kernel).removeprefix("void ").split("::")[-1] or kernel
