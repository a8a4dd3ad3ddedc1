"""A plot of a training's loss and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deeplab_crf.runtime.files import atomic_write
from deeplab_crf.training.log import Row

POINTS = 200  # of the smoothed curve


def plot_curves(rows: Sequence[Row], path: Path) -> bool:
    """Plot training loss (a dot for each iteration, a line of means) and validation mIoU as PNG.

    Args:
        rows: The rows of the log.
        path: The file, written whole or not at all.

    Returns:
        False if matplotlib is not installed or there is nothing to plot.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    learnt = [(row.iteration, row.loss) for row in rows if row.loss is not None]
    if not learnt:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    iterations, losses = np.array(learnt).T
    axes.plot(iterations, losses, ".", color="tab:blue", alpha=0.15, markersize=2)
    groups = np.array_split(np.arange(len(learnt)), min(len(learnt), POINTS))
    axes.plot(
        [iterations[group].mean() for group in groups],
        [losses[group].mean() for group in groups],
        color="tab:blue",
        label="training loss",
    )
    axes.set(xlabel="iteration", ylabel="training loss", ylim=(0, None))
    validated = [(row.iteration, row.mean_iou) for row in rows if row.mean_iou is not None]
    if validated:
        scores = axes.twinx()
        scores.plot(*zip(*validated, strict=True), "o-", color="tab:orange", markersize=4)
        scores.set(ylabel="validation mIoU, without CRF", ylim=(0, 1))
        axes.plot([], [], "o-", color="tab:orange", markersize=4, label="validation mIoU")
    axes.legend(loc="upper center")
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
    return True
