"""A whole tuning: scores in, a folder with a preset file and what led to it out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeplab_crf.core.pairwise import Bilateral, Gaussian
from deeplab_crf.core.presets import Preset, save_preset
from deeplab_crf.data.datasets import IGNORE, SegmentationFolder
from deeplab_crf.data.results import check_same_settings
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.evaluation.saved_scores import SavedScores, read_saved_scores
from deeplab_crf.evaluation.trimap import MAX_WIDTH, band_widths
from deeplab_crf.runtime.files import atomic_write, files_by_stem, matching_name
from deeplab_crf.training.checkpoint import Format, read_stored, write_stored
from deeplab_crf.tuning.gradient import Epoch, Learner, Learning
from deeplab_crf.tuning.grid import Grid, on_the_edge
from deeplab_crf.tuning.images import TuneImages
from deeplab_crf.tuning.search import GridSearch, ProgressBar
from deeplab_crf.tuning.table import Trial, TrialTable, check_same_question, plot_trials


@dataclass(frozen=True)
class Measure:
    """What is maximised: the mean IoU of all pixels, or of those in the trimap's band of half-width ``width``. kind: see
    `band_widths`. Raises ValueError for a width outside 1..40."""

    width: int | None = None
    kind: str = "boundary"

    def __post_init__(self) -> None:
        if self.width is not None and not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"the trimap's width must be in 1..{MAX_WIDTH} pixels; got {self.width}")

    def __str__(self) -> str:
        return "mean IoU" if self.width is None else f"mean IoU within {self.width} pixels ({self.kind})"

    def scored(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The labels ``(H, W)``, 255 where nothing is scored."""
        if self.width is None:
            return labels
        inside = band_widths(labels, self.kind) <= self.width
        return np.where(inside, labels, np.uint8(IGNORE))


@dataclass(frozen=True)
class Output:
    """Where results go: folder, and what the preset is called. about: of what images, for its description. afresh: whether what is
    there is replaced."""

    folder: Path
    name: str
    about: str
    afresh: bool = False

    @property
    def preset(self) -> Path:
        """The preset file."""
        return self.folder / "preset.toml"

    @property
    def table(self) -> Path:
        """What a search has tried."""
        return self.folder / "table.csv"

    @property
    def heatmap(self) -> Path:
        """The picture of ``table``."""
        return self.folder / "heatmap.png"

    @property
    def epochs(self) -> Path:
        """The course of a gradient descent."""
        return self.folder / "epochs.csv"

    @property
    def checkpoint(self) -> Path:
        """The state of a gradient descent that has not ended."""
        return self.folder / "checkpoint.pt"

    def check_free(self) -> None:
        """Raises ValueError where results of another tuning are there that are not to be replaced."""
        there = [path for path in (self.preset, self.table, self.epochs, self.heatmap) if path.exists()]
        if there and not self.afresh:
            raise ValueError(f"{there[0]} is there already; choose another folder, or --overwrite")

    def clear(self) -> None:
        """Remove the results of an earlier tuning, of either method, if they are to be replaced."""
        if self.afresh:
            question = self.folder / "question.json"
            for path in (self.preset, self.table, question, self.heatmap, self.epochs, self.checkpoint):
                path.unlink(missing_ok=True)

    def write(self, preset: Preset, measure: Measure, best: ConfusionMatrix, network: ConfusionMatrix) -> Preset:
        """Writes the preset file and returns what is in it."""
        text = f"deeplab-crf tune: {measure} {best.mean_iou:.4f}, of the network alone {network.mean_iou:.4f}, on {self.about}"
        named = replace(preset, name=self.name, description=text)
        save_preset(named, self.preset)
        return named


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came out. network, best: scores of the network alone and with ``preset``."""

    preset: Preset
    network: ConfusionMatrix
    best: ConfusionMatrix


@dataclass(frozen=True, eq=False)
class Learned(Tuned):
    """resumed: the epochs of an earlier run that this one went on from."""

    resumed: int


@dataclass(frozen=True, eq=False)
class Searched(Tuned):
    """trial: the best one of ``trials``. edges: numbers whose best value is the last that was tried on its side. milliseconds: of
    CPU time for an image and a setting, over ``computed`` of them (NaN for none). picture: None where matplotlib is missing, or
    where less than two numbers were varied."""

    trial: Trial
    trials: int
    edges: Sequence[str]
    milliseconds: float
    computed: int
    picture: Path | None


def read_all_scores(folder: Path, dataset: SegmentationFolder, indices: Sequence[int]) -> tuple[list[SavedScores], str]:
    """The scores that ``deeplab-crf evaluate --save-scores`` left in ``folder`` for these photographs, and a digest of the files.

    Raises ValueError that names the file: one that is missing (all are looked for before any is read), one that is damaged or of
    another kind, and another number of classes than the data set's.
    """
    found = files_by_stem(folder, frozenset({".npz"})) if folder.is_dir() else {}
    names = [dataset.items[i].name for i in indices]
    files = [found.get(matching_name(name), folder / f"{name}.npz") for name in names]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]}: no such file; scores of {len(missing)} of {len(files)} images are missing. deeplab-crf evaluate "
            "--save-scores writes them"
        )
    check_same_settings(folder, files)
    digest = hashlib.sha256()
    result = []
    for path in files:
        scores = read_saved_scores(path)
        if scores is None:
            raise ValueError(
                f'{path}: must hold "scores" and "size", as deeplab-crf evaluate --save-scores writes them'
            )
        if len(scores.values) != len(dataset.classes):
            raise ValueError(
                f"{path}: scores must have the {len(dataset.classes)} classes of the data set; got {len(scores.values)}"
            )
        digest.update(f"{path.name} {scores.values.dtype} {scores.values.shape} {scores.size} ".encode())
        digest.update(scores.values.tobytes())
        result.append(scores)
    return result, digest.hexdigest()[:16]


@dataclass(frozen=True)
class Search:
    """How to search: see `GridSearch.run`."""

    grid: Grid
    rounds: int
    normalization: str


def run_search(
    images: TuneImages, search: Search, measure: Measure, question: dict[str, Any], out: Output, bar: ProgressBar
) -> Searched:
    """Search, writing ``table.csv`` as it goes, and ``preset.toml`` and ``heatmap.png`` at the end. question: what must be the same
    for old trials to be gone on with, beside measure and normalisation; see `TrialTable`."""
    asked = {**question, "measure": str(measure), "normalization": search.normalization}
    if not out.table.exists():
        out.check_free()
    out.clear()
    table = TrialTable(out.folder, asked, afresh=out.afresh)
    network = _measure(images, None, "network", bar)  # reads every image: what is wrong with one shows at once
    runner = GridSearch(images, table, search.normalization, bar)
    trial = runner.run(search.grid, search.rounds)
    best = images.measure(trial.setting.preset(out.name, search.normalization))
    preset = out.write(trial.setting.preset(out.name, search.normalization), measure, best, network)
    return Searched(
        preset,
        network,
        best,
        trial,
        len(table.trials),
        on_the_edge(trial.setting, [each.setting for each in table.trials], search.grid.free),
        1000 * runner.seconds / runner.computed if runner.computed else float("nan"),
        runner.computed,
        _draw(table.trials, out.heatmap),
    )


def _draw(trials: Sequence[Trial], path: Path) -> Path | None:
    try:
        figure = plot_trials(trials)
    except ImportError:
        figure = None
    if figure is None:
        path.unlink(missing_ok=True)  # one of fewer trials would stay beside the table
        return None
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
    return path


def _measure(images: TuneImages, preset: Preset | None, title: str, bar: ProgressBar) -> ConfusionMatrix:
    with bar(title, len(images)) as advance:
        return images.measure(preset, lambda: advance(1))


def run_gradient(
    images: TuneImages,
    start: Preset,
    learning: Learning,
    measure: Measure,
    out: Output,
    bar: ProgressBar,
    on_epoch: Callable[[Epoch, ConfusionMatrix], None] = lambda _epoch, _matrix: None,
    question: Mapping[str, Any] | None = None,
) -> Learned:
    """Learn, writing ``epochs.csv`` as it goes, and after each epoch that is the best so far, the start counting as one, its
    ``preset.toml``.

    A run that was broken off goes on after its last whole epoch, with the bits of one that never was: ``checkpoint.pt`` holds its
    state until the end. question: what has to be the same for that, beside measure, start, rate, batch and seed; see `run_search`.
    Raises ValueError where the folder holds what was reached for another one, or a preset that is finished.
    """
    path, learner = out.checkpoint, Learner(images, start, learning)
    decides = {"start": repr(replace(start, name="", description="")), "rate": learning.rate, "batch": learning.batch}
    asked = {**(question or {}), "measure": str(measure), **decides, "seed": learning.seed}
    if path.exists() and not out.afresh:
        reached = _read_reached(path, asked, learner)
    else:
        out.check_free()
        network = _measure(images, None, "network", bar)
        best = _measure(images, start, "start", bar)
        reached = _Reached(network, best, None, [_epoch_row(0, None, start, best)])
        out.clear()
        _write_reached(path, asked, learner, reached)
    resumed = learner.done
    _write_epochs(reached.rows, out.epochs)
    preset = start if reached.numbers is None else learner.preset_of(reached.numbers)
    written = out.write(preset, measure, reached.best, reached.network)
    with bar("learn", len(images) * max(learning.epochs - resumed, 0)) as advance:
        for epoch in learner.epochs(advance):
            matrix = images.measure(epoch.preset)
            reached.rows.append(_epoch_row(epoch.number, epoch.loss, epoch.preset, matrix))
            better = matrix.mean_iou > reached.best.mean_iou
            if better:
                reached.best, reached.numbers = matrix, learner.numbers()
            _write_reached(path, asked, learner, reached)  # first: the files below can be made of it
            _write_epochs(reached.rows, out.epochs)
            if better:
                written = out.write(epoch.preset, measure, matrix, reached.network)
            on_epoch(epoch, matrix)
    path.unlink()
    return Learned(written, reached.network, reached.best, resumed)


@dataclass(eq=False)
class _Reached:
    """What a run by gradient has found so far. numbers: what the learner had learned at its best; None: the start is better."""

    network: ConfusionMatrix
    best: ConfusionMatrix
    numbers: list[torch.Tensor] | None
    rows: list[dict[str, Any]]


_LEARNING = Format(
    "deeplab-crf tuning 1",
    "tune",
    {"question": str, "learner": dict, "network": torch.Tensor, "best": torch.Tensor, "rows": list},
)


def _write_reached(path: Path, asked: Mapping[str, Any], learner: Learner, reached: _Reached) -> None:
    matrices = {"network": torch.from_numpy(reached.network.matrix), "best": torch.from_numpy(reached.best.matrix)}
    found = {"numbers": reached.numbers, "rows": reached.rows}
    write_stored(path, _LEARNING, {"question": json.dumps(asked), "learner": learner.state(), **matrices, **found})


def _read_reached(path: Path, asked: Mapping[str, Any], learner: Learner) -> _Reached:
    """Also puts the learner where it was."""
    stored = read_stored(path, _LEARNING)
    check_same_question(path.parent, "what another tuning has reached", json.loads(stored["question"]), asked)
    learner.load(stored["learner"])
    network, best = (ConfusionMatrix.of(stored[name].numpy()) for name in ("network", "best"))
    return _Reached(network, best, stored["numbers"], stored["rows"])


def _epoch_row(number: int, loss: float | None, preset: Preset, matrix: ConfusionMatrix) -> dict[str, Any]:
    """A line of ``epochs.csv``: of each kernel the weight, and every width."""
    row = {"epoch": number, "loss": loss, "mean_iou": matrix.mean_iou, "pixel_accuracy": matrix.pixel_accuracy}
    for m, kernel in enumerate(preset.kernels):
        assert isinstance(kernel, Gaussian | Bilateral)  # Learner has looked
        row[f"kernel{m}_weight"] = kernel.weight
        widths = dict(zip(("sx", "sy"), kernel.widths_xy, strict=True))
        if isinstance(kernel, Bilateral):
            widths |= zip(("sr", "sg", "sb"), kernel.widths_channels(3), strict=True)
        row |= {f"kernel{m}_{name}": width for name, width in widths.items()}
    return row


def _write_epochs(rows: Sequence[dict[str, Any]], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode())
