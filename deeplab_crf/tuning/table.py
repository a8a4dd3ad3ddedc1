"""What a search has tried: a CSV file that a search of the same question goes on from, and its picture."""

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
    """A setting and how well it does on all images together. round: 0 for the grid, 1, 2, ... around the best."""

    setting: Setting
    round: int
    mean_iou: float
    pixel_accuracy: float


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The one of the highest mean IoU, the first of several."""
    return max(trials, key=lambda trial: trial.mean_iou)


class TrialTable:
    """The trials of a search, in the file ``table.csv`` of a folder, one a line; ``question.json`` beside it says what was asked.

    question: what has to be the same for trials to be comparable (images, scores, measure, ...). A folder that holds trials of the
    same question gives them; of another, ValueError says what differs, unless ``afresh``, which forgets them.
    """

    def __init__(self, folder: Path, question: Mapping[str, Any], *, afresh: bool = False) -> None:
        self.path = folder / "table.csv"
        self.trials: list[Trial] = []
        asked = folder / "question.json"
        if self.path.exists() and not afresh:
            _check_question(asked, question)
            self.trials = _read_trials(self.path)
            return
        self.path.unlink(missing_ok=True)  # before the question changes: never old trials under a new question
        with atomic_write(asked) as stream:
            stream.write((json.dumps(question, indent=2) + "\n").encode())

    def add(self, trials: Iterable[Trial]) -> None:
        """Keep these too. The file on disk is whole at any time."""
        self.trials += trials
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for each in self.trials:
            *numbers, iterations = each.setting
            writer.writerow((each.round, *map(float, numbers), iterations, each.mean_iou, each.pixel_accuracy))
        with atomic_write(self.path) as stream:
            stream.write(text.getvalue().encode())


def _check_question(path: Path, question: Mapping[str, Any]) -> None:
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); choose another folder, or --overwrite") from error
    check_same_question(path.parent, "trials of another search", asked, question)


def check_same_question(folder: Path, what: str, asked: Any, question: Mapping[str, Any]) -> None:
    """Raises ValueError that says which part of ``question`` is not as it was ``asked`` when ``folder`` was written, so that it
    holds ``what``."""
    for key, value in question.items():
        if not isinstance(asked, dict) or asked.get(key) != value:
            before = asked.get(key) if isinstance(asked, dict) else asked
            raise ValueError(
                f"{folder} holds {what}: {key} was {before!r}, now it is {value!r}. Choose another folder, or --overwrite"
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


def _read_trial(row: Sequence[str], where: str) -> Trial:
    try:
        number, *numbers, iterations, mean_iou, accuracy = row
        gaussian_weight, gaussian_sxy, weight, sxy, srgb = map(float, numbers)
        setting = Setting(gaussian_weight, gaussian_sxy, weight, sxy, srgb, int(iterations))
        return Trial(setting, int(number), float(mean_iou), float(accuracy))
    except ValueError as error:
        raise ValueError(
            f"{where} must hold {len(_COLUMNS)} numbers; got {','.join(row)}. --overwrite begins afresh"
        ) from error


def plot_trials(trials: Sequence[Trial]) -> Figure | None:
    """Heat maps of the mean IoU over every two numbers that were varied, each cell the best over all others, the best of all
    framed. None where less than two were varied.

    Save it with ``.savefig(path)``. Raises ImportError where matplotlib is not installed.
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
