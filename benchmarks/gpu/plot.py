"""Bars: the goals' times beside their targets, and the bandwidth of every kernel beside that of a copy."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.document import REHEARSAL
from benchmarks.gpu.section import Goal, Section

TARGET = "#c0392b"
COLOURS = ("#3b6ea5", "#9dbad8")
LABEL_WIDTH = 44  # characters
ROOM = 1.15  # beyond the longest bar, for its label


def plot(sections: Mapping[str, Section], path: Path, rehearsal: bool) -> bool:
    """Write the image, unless there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    goals = [goal for section in sections.values() for goal in section.goals]
    kernels = bandwidths(sections)
    panels = [panel for panel in (goals, kernels) if panel]
    if not panels:
        return False
    lengths = [len(panel) for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(11, 1.6 * len(panels) + 0.42 * sum(lengths)),
        height_ratios=lengths,
        layout="constrained",
        squeeze=False,
    )
    remaining = list(axes[:, 0])
    if goals:
        draw_goals(remaining.pop(0), goals)
    if kernels:
        draw_bandwidths(remaining.pop(0), kernels, copy_bandwidth(sections))
    if rehearsal:
        figure.suptitle(REHEARSAL.split(":")[0], color=TARGET)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def draw_goals(axes: Any, goals: list[Goal]) -> None:
    """A bar a goal and a mark at its target; ratios have the same axis."""
    places = range(len(goals))
    axes.barh(places, [goal.value for goal in goals], 0.6, color=COLOURS[0], label="measured")
    lows, highs = ([place + offset for place in places] for offset in (-0.4, 0.4))
    axes.vlines([goal.target for goal in goals], lows, highs, color=TARGET, linewidth=2, label="target")
    longest = max(max(goal.value, goal.target) for goal in goals)
    for place, goal in zip(places, goals, strict=True):
        beside = max(goal.value, goal.target) + 0.01 * longest
        axes.text(beside, place, f"{goal.value:.3g} {goal.unit}", va="center")
    axes.set_yticks(places, [textwrap.fill(goal.name, LABEL_WIDTH) for goal in goals])
    axes.set_xlim(0, ROOM * longest)
    axes.set_xlabel("ms, or times the forward pass (x)")
    _finish(axes, len(goals))


def draw_bandwidths(axes: Any, kernels: dict[str, dict[str, float]], copy: float | None) -> None:
    """A bar a kernel and case, and a line at the bandwidth of a copy."""
    cases = list(dict.fromkeys(case for each in kernels.values() for case in each))
    height = 0.8 / len(cases)
    for number, case in enumerate(cases):
        present = [(row, each[case] / 1e12) for row, each in enumerate(kernels.values()) if case in each]
        places = [row + (number - (len(cases) - 1) / 2) * height for row, _ in present]
        colour = COLOURS[number % len(COLOURS)]
        bars = axes.barh(places, [value for _, value in present], height, color=colour, label=case)
        axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=8)
    axes.set_yticks(range(len(kernels)), list(kernels))
    axes.set_xlim(0, ROOM * max([value for each in kernels.values() for value in each.values()] + [copy or 0.0]) / 1e12)
    axes.set_xlabel("TB/s of the bytes that a kernel must move")
    if copy is not None:
        axes.axvline(copy / 1e12, color=TARGET, linewidth=2, label="device-to-device copy", zorder=0)
    _finish(axes, len(kernels))


def _finish(axes: Any, rows: int) -> None:
    axes.set_ylim(rows - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


def bandwidths(sections: Mapping[str, Section]) -> dict[str, dict[str, float]]:
    """Bytes a second by kernel and case, of those whose traffic is known."""
    result: dict[str, dict[str, float]] = {}
    tables = sections["kernels"].data.get("kernels", {}) if "kernels" in sections else {}
    for title, kernels in tables.items():
        case = title.partition(":")[0].rpartition(" ")[2]
        for kernel in kernels:
            if kernel["bandwidth"] is not None:
                result.setdefault(kernel["name"], {})[case] = kernel["bandwidth"]
    return result


def copy_bandwidth(sections: Mapping[str, Section]) -> float | None:
    """Of the device, where it was measured."""
    ceilings = sections["facts"].data.get("ceilings", {}) if "facts" in sections else {}
    return ceilings.get("copy")
