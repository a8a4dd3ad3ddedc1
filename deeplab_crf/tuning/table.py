"""The trials of a search: a CSV file from which the same search continues, and its plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_crf.runtime.files import atomic_write
from deeplab_crf.tuning.grid import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("round", *Setting._fields, "mean_iou", "pixel_accuracy")


@dataclass(frozen=True)
class Trial:
    """A setting and its score over all images.

    Args:
        setting: The setting.
        round: 0 for the grid, 1, 2, ... around the best.
        mean_iou: The score that is maximised.
        pixel_accuracy: The share of right pixels.
    """

    setting: Setting
    round: int
    mean_iou: float
    pixel_accuracy: float


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the first trial of the highest mean IoU."""
    return max(trials, key=lambda trial: trial.mean_iou)


class TrialTable:
    """The trials of a search in a folder: ``table.csv``, and ``setup.json`` beside it.

    Args:
        folder: Where the files are. Trials of the same setup are read.
        setup: What must be equal for trials to be comparable (images, scores, measure, ...).
        afresh: Whether existing trials are dropped.

    Raises:
        ValueError: The folder holds trials of another setup, and ``afresh`` is False.
    """

    def __init__(self, folder: Path, setup: Mapping[str, Any], *, afresh: bool = False) -> None:
        self.path = folder / "table.csv"
        self.trials: list[Trial] = []
        setup_path = folder / "setup.json"
        if self.path.exists() and not afresh:
            _check_setup(setup_path, setup)
            self.trials = _read_trials(self.path)
            return
        self.path.unlink(missing_ok=True)  # before the setup changes: never old trials under a new setup
        with atomic_write(setup_path) as stream:
            stream.write((json.dumps(setup, indent=2) + "\n").encode())

    def add(self, trials: Iterable[Trial]) -> None:
        """Add trials; the file on disk is complete at any time."""
        self.trials += trials
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for each in self.trials:
            *numbers, iterations = each.setting
            writer.writerow((each.round, *map(float, numbers), iterations, each.mean_iou, each.pixel_accuracy))
        with atomic_write(self.path) as stream:
            stream.write(text.getvalue().encode())


def _check_setup(path: Path, setup: Mapping[str, Any]) -> None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); choose another folder, or --overwrite") from error
    check_same_setup(path.parent, "trials of another search", stored, setup)


def check_same_setup(folder: Path, content: str, stored: Any, setup: Mapping[str, Any]) -> None:
    """Check that ``setup`` equals what is stored.

    Args:
        folder: Where it is stored, for the error.
        content: What the folder holds, for the error.
        stored: The stored setup.
        setup: The current one.

    Raises:
        ValueError: They differ; the error names the key.
    """
    for key, value in setup.items():
        if not isinstance(stored, dict) or stored.get(key) != value:
            before = stored.get(key) if isinstance(stored, dict) else stored
            raise ValueError(
                f"{folder} holds {content}: {key} was {before!r}, now it is {value!r}. Choose another folder, or --overwrite"
            )


def _read_trials(path: Path) -> list[Trial]:
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table of trials ({error}). --overwrite begins afresh") from error
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise ValueError(
            f"{path}: the first line must be {','.join(_COLUMNS)}; got {','.join(rows[0]) if rows else ''}. "
            "--overwrite begins afresh"
        )
    return [_read_trial(row, f"{path}: line {number}") for number, row in enumerate(rows[1:], 2)]


def _read_trial(row: Sequence[str], line: str) -> Trial:
    try:
        number, *numbers, iterations, mean_iou, accuracy = row
        gaussian_weight, gaussian_sxy, weight, sxy, srgb = map(float, numbers)
        setting = Setting(gaussian_weight, gaussian_sxy, weight, sxy, srgb, int(iterations))
        return Trial(setting, int(number), float(mean_iou), float(accuracy))
    except ValueError as error:
        raise ValueError(
            f"{line} must hold {len(_COLUMNS)} numbers; got {','.join(row)}. --overwrite begins afresh"
        ) from error


def plot_trials(trials: Sequence[Trial]) -> Figure | None:
    """Plot the mean IoU over every two numbers that were varied, as heat maps.

    Each cell is the best over all other numbers; the best of all is framed.

    Returns:
        The figure; None if fewer than two numbers were varied.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib. Install it: pip install "deeplab-crf[bench]"') from error
    varied = [name for name in Setting._fields if len({getattr(each.setting, name) for each in trials}) > 1]
    pairs = list(combinations(varied, 2))
    if not pairs:
        return None
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    best = best_trial(trials).setting
    for axes, (down, across) in zip(figure.subplots(rows, columns, squeeze=False).flat, pairs, strict=False):
        ys, xs = (sorted({getattr(each.setting, name) for each in trials}) for name in (down, across))
        cells = np.full((len(ys), len(xs)), np.nan)
        for each in trials:
            place = ys.index(getattr(each.setting, down)), xs.index(getattr(each.setting, across))
            cells[place] = np.fmax(cells[place], each.mean_iou)
        drawn = axes.imshow(100 * cells, origin="lower", aspect="auto", cmap="viridis")
        figure.colorbar(drawn, ax=axes, label="mean IoU (%)")
        corner = xs.index(getattr(best, across)) - 0.5, ys.index(getattr(best, down)) - 0.5
        axes.add_patch(_frame(corner))
        axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs], rotation=90 if len(xs) > 8 else 0)
        axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
        axes.set_xlabel(across.replace("_", " "))
        axes.set_ylabel(down.replace("_", " "))
    for axes in list(figure.axes)[: rows * columns][len(pairs) :]:
        axes.set_visible(False)
    return figure


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2)
