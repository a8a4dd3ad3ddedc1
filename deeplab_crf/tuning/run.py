"""A whole tuning: from scores to a folder with a preset file and its log."""

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
from deeplab_crf.runtime.checks import whole_number
from deeplab_crf.runtime.files import atomic_write, files_by_stem, matching_name
from deeplab_crf.training.checkpoint import Format, read_stored, write_stored
from deeplab_crf.tuning.gradient import Epoch, GradientOptions, GradientTuner
from deeplab_crf.tuning.grid import Grid, on_the_edge
from deeplab_crf.tuning.images import TuneImages
from deeplab_crf.tuning.search import GridSearch, ProgressBar
from deeplab_crf.tuning.table import Trial, TrialTable, check_same_setup, plot_trials


@dataclass(frozen=True)
class Measure:
    """The measure to maximise: mean IoU, over all pixels or in a band of the trimap.

    Args:
        width: The half-width of the band, 1..40; None: all pixels.
        kind: See `band_widths`.

    Raises:
        ValueError: The width is outside 1..40.
    """

    width: int | None = None
    kind: str = "boundary"

    def __post_init__(self) -> None:
        if self.width is not None:
            whole_number(self.width, "the trimap's width", 1, MAX_WIDTH)

    def __str__(self) -> str:
        return "mean IoU" if self.width is None else f"mean IoU within {self.width} pixels ({self.kind})"

    def scored(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the labels ``(H, W)``, 255 where nothing is scored."""
        if self.width is None:
            return labels
        inside = band_widths(labels, self.kind) <= self.width
        return np.where(inside, labels, np.uint8(IGNORE))


@dataclass(frozen=True)
class Output:
    """The files of a tuning.

    Args:
        folder: Where they are.
        name: The name of the preset.
        about: The images, for its description.
        afresh: Whether existing results are replaced.
    """

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
        """The trials of a search."""
        return self.folder / "table.csv"

    @property
    def heatmap(self) -> Path:
        """The plot of ``table``."""
        return self.folder / "heatmap.png"

    @property
    def epochs(self) -> Path:
        """The log of a gradient descent."""
        return self.folder / "epochs.csv"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished gradient descent."""
        return self.folder / "checkpoint.pt"

    def check_free(self) -> None:
        """Check that no results of another tuning would be lost.

        Raises:
            ValueError: There are some, and ``afresh`` is False.
        """
        there = [path for path in (self.preset, self.table, self.epochs, self.heatmap) if path.exists()]
        if there and not self.afresh:
            raise ValueError(f"{there[0]} is there already; choose another folder, or --overwrite")

    def clear(self) -> None:
        """Remove the results of an earlier tuning, of either method, if they are to be replaced."""
        if self.afresh:
            setup = self.folder / "setup.json"
            for path in (self.preset, self.table, setup, self.heatmap, self.epochs, self.checkpoint):
                path.unlink(missing_ok=True)

    def write(self, preset: Preset, measure: Measure, best: ConfusionMatrix, network: ConfusionMatrix) -> Preset:
        """Write the preset file and return its preset."""
        text = f"deeplab-crf tune: {measure} {best.mean_iou:.4f}, of the network alone {network.mean_iou:.4f}, on {self.about}"
        named = replace(preset, name=self.name, description=text)
        save_preset(named, self.preset)
        return named


@dataclass(frozen=True, eq=False)
class TuningResult:
    """The result of a tuning.

    Args:
        preset: The best preset.
        network: The score of the network alone.
        best: The score with ``preset``.
    """

    preset: Preset
    network: ConfusionMatrix
    best: ConfusionMatrix


@dataclass(frozen=True, eq=False)
class GradientResult(TuningResult):
    """The result of a gradient descent.

    Args:
        resumed: The epochs of an earlier run that this one continued.
    """

    resumed: int


@dataclass(frozen=True, eq=False)
class SearchResult(TuningResult):
    """The result of a search.

    Args:
        trial: The best trial.
        trials: The number of trials.
        edges: Numbers whose best value is the last one tried on its side.
        milliseconds: CPU time for an image and a setting; NaN if none was computed.
        computed: The number of images times settings that were computed.
        heatmap: The plot; None if matplotlib is missing or fewer than two numbers were varied.
    """

    trial: Trial
    trials: int
    edges: Sequence[str]
    milliseconds: float
    computed: int
    heatmap: Path | None


def read_all_scores(folder: Path, dataset: SegmentationFolder, indices: Sequence[int]) -> tuple[list[SavedScores], str]:
    """Read the scores that ``deeplab-crf evaluate --save-scores`` wrote.

    Args:
        folder: Where they are.
        dataset: The images.
        indices: Which of them.

    Returns:
        The scores, and a digest of the files.

    Raises:
        ValueError: A file is missing (all are looked up before any is read), damaged or of another
            kind, or has another number of classes.
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
    """The arguments of `GridSearch`."""

    grid: Grid
    rounds: int
    normalization: str


def run_search(
    images: TuneImages, search: Search, measure: Measure, setup: dict[str, Any], out: Output, bar: ProgressBar
) -> SearchResult:
    """Search, and write ``table.csv`` on the way, ``preset.toml`` and ``heatmap.png`` at the end.

    Args:
        images: The images.
        search: How to search.
        measure: What to maximise.
        setup: What must be equal, beside measure and normalization, to continue with old trials;
            see `TrialTable`.
        out: The files.
        bar: Makes progress bars.
    """
    asked = {**setup, "measure": str(measure), "normalization": search.normalization}
    if not out.table.exists():
        out.check_free()
    out.clear()
    table = TrialTable(out.folder, asked, afresh=out.afresh)
    network = _measure(images, None, "network", bar)  # reads every image: what is wrong with one shows at once
    runner = GridSearch(images, table, search.normalization, bar)
    trial = runner.run(search.grid, search.rounds)
    best = images.measure(trial.setting.preset(out.name, search.normalization))
    preset = out.write(trial.setting.preset(out.name, search.normalization), measure, best, network)
    return SearchResult(
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
    options: GradientOptions,
    measure: Measure,
    out: Output,
    bar: ProgressBar,
    on_epoch: Callable[[Epoch, ConfusionMatrix], None] = lambda _epoch, _matrix: None,
    setup: Mapping[str, Any] | None = None,
) -> GradientResult:
    """Learn, writing ``epochs.csv``, and ``preset.toml`` after each epoch that is the best so far.

    The start counts as an epoch. ``checkpoint.pt`` holds the state until the end: an interrupted
    run continues after its last whole epoch, with the bits of an uninterrupted one.

    Args:
        images: The images.
        start: The preset to start from.
        options: How to learn.
        measure: What decides which epoch is the best.
        out: The files.
        bar: Makes progress bars.
        on_epoch: Called after each epoch.
        setup: What must be equal, beside measure, start, rate, batch and seed, to continue; see
            `run_search`.

    Raises:
        ValueError: The folder holds the state for another setup, or a finished preset.
    """
    path, tuner = out.checkpoint, GradientTuner(images, start, options)
    decides = {"start": repr(replace(start, name="", description="")), "rate": options.rate, "batch": options.batch}
    asked = {**(setup or {}), "measure": str(measure), **decides, "seed": options.seed}
    if path.exists() and not out.afresh:
        reached = _read_reached(path, asked, tuner)
    else:
        out.check_free()
        network = _measure(images, None, "network", bar)
        best = _measure(images, start, "start", bar)
        reached = _Reached(network, best, None, [_epoch_row(0, None, start, best)])
        out.clear()
        _write_reached(path, asked, tuner, reached)
    resumed = tuner.done
    _write_epochs(reached.rows, out.epochs)
    preset = start if reached.numbers is None else tuner.preset_of(reached.numbers)
    written = out.write(preset, measure, reached.best, reached.network)
    with bar("learn", len(images) * max(options.epochs - resumed, 0)) as advance:
        for epoch in tuner.epochs(advance):
            matrix = images.measure(epoch.preset)
            reached.rows.append(_epoch_row(epoch.number, epoch.loss, epoch.preset, matrix))
            better = matrix.mean_iou > reached.best.mean_iou
            if better:
                reached.best, reached.numbers = matrix, tuner.numbers()
            _write_reached(path, asked, tuner, reached)  # first: the files below can be made of it
            _write_epochs(reached.rows, out.epochs)
            if better:
                written = out.write(epoch.preset, measure, matrix, reached.network)
            on_epoch(epoch, matrix)
    path.unlink()
    return GradientResult(written, reached.network, reached.best, resumed)


@dataclass(eq=False)
class _Reached:
    """The state of a gradient descent; ``numbers`` are those of its best epoch, None for the start."""

    network: ConfusionMatrix
    best: ConfusionMatrix
    numbers: list[torch.Tensor] | None
    rows: list[dict[str, Any]]


_GRADIENT = Format(
    "deeplab-crf tuning 1",
    "tune",
    {"setup": str, "tuner": dict, "network": torch.Tensor, "best": torch.Tensor, "rows": list},
)


def _write_reached(path: Path, asked: Mapping[str, Any], tuner: GradientTuner, reached: _Reached) -> None:
    matrices = {"network": torch.from_numpy(reached.network.matrix), "best": torch.from_numpy(reached.best.matrix)}
    found = {"numbers": reached.numbers, "rows": reached.rows}
    write_stored(path, _GRADIENT, {"setup": json.dumps(asked), "tuner": tuner.state(), **matrices, **found})


def _read_reached(path: Path, asked: Mapping[str, Any], tuner: GradientTuner) -> _Reached:
    """Read the state, also into the tuner."""
    stored = read_stored(path, _GRADIENT)
    check_same_setup(path.parent, "what another tuning has reached", json.loads(stored["setup"]), asked)
    tuner.load(stored["tuner"])
    network, best = (ConfusionMatrix.of(stored[name].numpy()) for name in ("network", "best"))
    return _Reached(network, best, stored["numbers"], stored["rows"])


def _epoch_row(number: int, loss: float | None, preset: Preset, matrix: ConfusionMatrix) -> dict[str, Any]:
    """Return a row of ``epochs.csv``: the weight and every width of each kernel."""
    row = {"epoch": number, "loss": loss, "mean_iou": matrix.mean_iou, "pixel_accuracy": matrix.pixel_accuracy}
    for m, kernel in enumerate(preset.kernels):
        assert isinstance(kernel, Gaussian | Bilateral)  # GradientTuner has looked
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
