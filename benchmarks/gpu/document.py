"""REPORT.md and report.json of a run. Every number in them is one of its sections'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.gpu.section import EVENTS, NOT_RUN, REPLAY, Check, Goal, Section, Timing
from benchmarks.report import MISSING, table

REHEARSAL = (
    "CPU rehearsal, not a GPU figure: every number below is of a tiny problem on a CPU and says nothing about a GPU."
)


def as_markdown(
    sections: Mapping[str, Section], head: Mapping[str, str], rehearsal: bool, plot_file: str | None
) -> str:
    """Return the document. head: name to text, for the lines at the top. plot_file: name of the plot beside it."""
    lines = ["# CUDA engine: report of one run"]
    if rehearsal:
        lines.append(f"**{REHEARSAL}**")
    lines.append("\n".join(f"- {name}: {text}" for name, text in head.items()))
    lines += ["## In short", verdict(sections)]
    goals = [goal for section in sections.values() for goal in section.goals]
    if goals:
        lines += ["## What was wanted", goal_table(goals, rehearsal)]
    if plot_file is not None:
        lines.append(f"![times beside their targets, and bandwidths of the kernels]({plot_file})")
    checks = [check for section in sections.values() for check in section.checks]
    if checks:
        lines += ["## What has to be right", check_table(checks)]
    for section in sections.values():
        lines += section_lines(section)
    return "\n\n".join(lines) + "\n"


def verdict(sections: Mapping[str, Section]) -> str:
    """What failed, or that nothing did; what was not run."""
    bad = [name for section in sections.values() for name in section.bad]
    lines = [f"- FAILED: {name}" for name in bad] or ["- Everything that has to be right is."]
    lines += [
        f"- Not run: {section.title}: {section.reason}." for section in sections.values() if section.status == NOT_RUN
    ]
    return "\n".join(lines)


def goal_table(goals: Iterable[Goal], rehearsal: bool) -> str:
    """Value beside target; in a rehearsal nothing is reached or missed."""
    rows = []
    for goal in goals:
        reached = MISSING if rehearsal else "yes" if goal.reached else "NO"
        rows.append([goal.name, f"{goal.value:.3f} {goal.unit}", f"{goal.target:g} {goal.unit}", reached])
    return table(["", "measured", "target (at most)", "reached"], rows)


def check_table(checks: Iterable[Check]) -> str:
    """Found beside wanted."""
    rows = [[check.name, check.found, check.wanted, "yes" if check.good else "FAILED"] for check in checks]
    return table(["", "found", "wanted", "right"], rows)


def timing_table(timings: Iterable[Timing]) -> str:
    """A row for each name, a column for each method; smallest and largest behind the median."""
    by_name: dict[str, dict[str, Timing]] = {}
    for timing in timings:
        by_name.setdefault(timing.name, {})[timing.method] = timing
    methods = [EVENTS, REPLAY]
    methods += sorted({method for each in by_name.values() for method in each} - set(methods))
    rows = [[name, *(cell(each.get(method)) for method in methods)] for name, each in by_name.items()]
    return table(["median (smallest to largest) ms", *methods], rows)


def cell(timing: Timing | None) -> str:
    """Milliseconds an image."""
    if timing is None:
        return MISSING
    low, high = (extreme(timing.milliseconds) / timing.images for extreme in (min, max))
    return f"{timing.median:.3f} ({low:.3f} to {high:.3f})"


def section_lines(section: Section) -> list[str]:
    """Everything of one step but its checks and goals."""
    state = section.status + (f": {section.reason}" if section.reason else "")
    lines = [f"## {section.title}", f"{state} ({section.seconds:.0f} s)"]
    if section.timings:
        lines.append(timing_table(section.timings))
    for each in section.tables:
        lines += [f"### {each.title}", table(each.header, each.rows)]
    lines += section.notes
    if section.output:
        lines += ["Last lines:", "\n".join(["```", *section.output, "```"])]
    return lines


def as_json(sections: Mapping[str, Section], head: Mapping[str, str], rehearsal: bool) -> dict[str, Any]:
    """Every raw number."""
    return {
        "rehearsal": REHEARSAL if rehearsal else None,
        "head": dict(head),
        "sections": {name: asdict(section) for name, section in sections.items()},
    }
