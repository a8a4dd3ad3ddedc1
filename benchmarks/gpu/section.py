"""What one step of the report found, as plain data: it crosses from the step's process to the report's as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
SHOWN_LINES = 40
EVENTS, REPLAY = "events", "graph replay"


@dataclass
class Check:
    """Something that has to be right. Only these and failed steps decide the exit status; a missed goal does not."""

    name: str
    found: str
    wanted: str
    good: bool


@dataclass
class Timing:
    """Milliseconds of every repetition. method: EVENTS or REPLAY. images: that one repetition works on."""

    name: str
    method: str
    milliseconds: list[float]
    images: int = 1

    @property
    def median(self) -> float:
        """Milliseconds an image."""
        return median(self.milliseconds) / self.images


@dataclass
class Goal:
    """What the project wants to reach. unit: "ms" or "x"; smaller is better."""

    name: str
    value: float
    target: float
    unit: str

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.value <= self.target


@dataclass
class Table:
    """For the document alone: numbers stand in `Section.data` too."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """One step. reason: why it failed or was not run. output: last lines of what failed. data: raw numbers.

    file: where the section is kept from the first entry on, so that a step that dies or is stopped leaves what it had.
    """

    title: str
    file: str | None = None
    status: str = DONE
    reason: str = ""
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, found: str, wanted: str, good: bool) -> None:
        """Add a check."""
        self.checks.append(Check(name, found, wanted, good))
        self.save()

    def timing(
        self, name: str, method: str, milliseconds: Sequence[float], images: int = 1, target: float | None = None
    ) -> Timing:
        """Add a timing, and a goal if there is a target in milliseconds an image."""
        timing = Timing(name, method, list(milliseconds), images)
        self.timings.append(timing)
        if target is not None:
            self.goals.append(Goal(name, timing.median, target, "ms"))
        self.save()
        return timing

    def goal(self, name: str, value: float, target: float, unit: str) -> None:
        """Add a goal that is not a timing."""
        self.goals.append(Goal(name, value, target, unit))
        self.save()

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        self.tables.append(Table(title, list(header), [list(row) for row in rows]))
        self.save()

    def note(self, text: str) -> None:
        """Add a sentence."""
        self.notes.append(text)
        self.save()

    def not_run(self, reason: str) -> Section:
        """This step was left out."""
        self.status, self.reason = NOT_RUN, reason
        self.save()
        return self

    def fail(self, reason: str, output: Sequence[str] = ()) -> Section:
        """This step went wrong. All of the output goes to the raw data."""
        self.status, self.reason, self.output = FAILED, reason, list(output[-SHOWN_LINES:])
        self.data["output"] = list(output)
        self.save()
        return self

    @property
    def bad(self) -> list[str]:
        """Names of what has to be right and is not."""
        failed = [f"{self.title}: {self.reason}"] if self.status == FAILED else []
        return failed + [f"{self.title}: {check.name}" for check in self.checks if not check.good]

    def save(self) -> None:
        """Write the file, if there is one, whole or not at all."""
        if self.file is None:
            return
        path = Path(self.file)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(path)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Section:
        """The inverse of ``dataclasses.asdict``."""
        entries = {"checks": Check, "timings": Timing, "goals": Goal, "tables": Table}
        made = {name: [kind(**entry) for entry in data[name]] for name, kind in entries.items()}
        return cls(**{**data, **made})
