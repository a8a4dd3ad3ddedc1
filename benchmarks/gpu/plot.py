"""Bars: the goals' times beside their targets, and the bandwidth of every kernel beside that of a copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.document import REHEARSAL
from benchmarks.gpu.section import Goal, Section

TARGET = "#c0392b"
BAR = "#3b6ea5"


def plot(sections: Mapping[str, Section], path: Path, rehearsal: bool) -> bool:
    """Write the picture, unless there is nothing to draw."""
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
        figsize=(10, 1.6 * len(panels) + 0.32 * sum(lengths)),
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
    bars = axes.barh(places, [goal.value for goal in goals], 0.6, color=BAR, label="measured")
    axes.bar_label(bars, [f"{goal.value:.3g} {goal.unit}" for goal in goals], padding=4)
    heights = [place + offset for place in places for offset in (-0.4, 0.4)]
    targets = [goal.target for goal in goals for _ in range(2)]
    for place in places:
        label = "target" if place == 0 else None
        axes.plot(
            targets[2 * place : 2 * place + 2], heights[2 * place : 2 * place + 2], color=TARGET, lw=2, label=label
        )
    axes.set_yticks(places, [goal.name for goal in goals])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("ms, or times the forward pass (x)")
    axes.legend()


def draw_bandwidths(axes: Any, kernels: dict[str, float], copy: float | None) -> None:
    """A bar a kernel, and a line at the bandwidth of a copy."""
    places = range(len(kernels))
    bars = axes.barh(places, [value / 1e12 for value in kernels.values()], 0.6, color=BAR)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_yticks(places, list(kernels))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("TB/s of what a kernel must move")
    if copy is not None:
        axes.axvline(copy / 1e12, color=TARGET, lw=2, label="device-to-device copy")
        axes.legend()


def bandwidths(sections: Mapping[str, Section]) -> dict[str, float]:
    """Bytes a second by "kernel, case", of those whose traffic is known."""
    result = {}
    tables = sections["kernels"].data.get("kernels", {}) if "kernels" in sections else {}
    for title, kernels in tables.items():
        case = title.partition(":")[0].rpartition(" ")[2]
        for kernel in kernels:
            if kernel["bandwidth"] is not None:
                result[f"{kernel['name']}, {case}"] = kernel["bandwidth"]
    return result


def copy_bandwidth(sections: Mapping[str, Section]) -> float | None:
    """Of the device, where it was measured."""
    ceilings = sections["facts"].data.get("ceilings", {}) if "facts" in sections else {}
    return ceilings.get("copy")
