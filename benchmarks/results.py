"""What was measured, and the numbers that are read off it: medians, ratios, geometric means."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.cases import Case
from benchmarks.engines import PEER, Run
from benchmarks.memory import MemoryUse

PHASES = ("total", "build", "inference")


@dataclass
class Timing:
    """Seconds of every repetition of one engine; an engine without separate phases has a total alone."""

    engine: str
    threads: int
    build: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """Append the times of one run."""
        self.total.append(run.total)
        if run.build is not None and run.inference is not None:
            self.build.append(run.build)
            self.inference.append(run.inference)

    def median(self, phase: str = "total") -> float | None:
        """Seconds, or None where the phase was not measured."""
        seconds: list[float] = getattr(self, phase)
        return median(seconds) if seconds else None


@dataclass
class Agreement:
    """How an engine's result compares with pydensecrf2's. max_difference: of probabilities, None for labels alone."""

    engine: str
    threads: int
    equal_labels: float
    max_difference: float | None
    good: bool


@dataclass
class Result:
    """Everything measured on one case.

    vertices: M of each kernel's lattice. memory: by (engine, threads).
    """

    case: Case
    vertices: dict[str, int]
    timings: list[Timing]
    agreements: list[Agreement]
    memory: dict[tuple[str, int], MemoryUse] = field(default_factory=dict)

    def timing(self, engine: str, threads: int = 1) -> Timing | None:
        """One engine's times, or None if it did not take part."""
        return next((t for t in self.timings if (t.engine, t.threads) == (engine, threads)), None)

    def agreement(self, engine: str, threads: int = 1) -> Agreement | None:
        """One engine's comparison, or None."""
        return next((a for a in self.agreements if (a.engine, a.threads) == (engine, threads)), None)

    def speedup(self, engine: str, threads: int = 1, phase: str = "total") -> float | None:
        """Median of pydensecrf2 over the engine's median, or None where one is missing."""
        peer, other = self.timing(PEER), self.timing(engine, threads)
        theirs = peer.median(phase) if peer else None
        own = other.median(phase) if other else None
        return theirs / own if theirs and own else None

    def memory_ratio(self, engine: str, threads: int = 1) -> float | None:
        """Rise of the engine's memory over that of pydensecrf2's, or None."""
        peer, own = self.memory.get((PEER, 1)), self.memory.get((engine, threads))
        return own.rise / peer.rise if peer and own else None

    def to_json(self) -> dict[str, Any]:
        """Plain data: every repetition of every engine."""
        return {
            "name": self.case.name,
            "case": self.case.to_json(),
            "vertices": self.vertices,
            "timings": [asdict(timing) for timing in self.timings],
            "agreements": [asdict(agreement) for agreement in self.agreements],
            "memory": [
                {"engine": engine, "threads": threads, **asdict(use)} for (engine, threads), use in self.memory.items()
            ],
        }


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None if none is."""
    present = [value for value in values if value is not None]
    return math.exp(sum(math.log(value) for value in present) / len(present)) if present else None
