"""Reports of an evaluation: tables, results.json, results.md, trimap plot, examples. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.data.classes import class_palette
from deeplab_crf.data.datasets import IGNORE
from deeplab_crf.data.figures import figure
from deeplab_crf.data.images import LabelImage, overlay, write_image
from deeplab_crf.evaluation.class_pixels import shortened
from deeplab_crf.evaluation.trimap import MAX_WIDTH, TrimapScores
from deeplab_crf.runtime.files import atomic_write

if TYPE_CHECKING:  # torch
    from deeplab_crf.evaluation.evaluate import Evaluation, ImageScore, Prediction

REPORT_FILES = ("trimap.png", "results.md", "results.json")
_EXAMPLE = re.compile(r"(worst|best)-\d+-.*", re.DOTALL)
SHOWN_WIDTHS = (1, 2, 3, 5, 10, 20, 40)
BAND_WORDS = {"void": "void borders", "boundary": "borders between classes"}


@dataclass(frozen=True)
class Report:
    """An evaluation with the names of its classes.

    Args:
        evaluation: The scores.
        classes: The names of the classes.
        settings: What was run, as results.json shows it.
    """

    evaluation: Evaluation
    classes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def stages(self) -> dict[str, TrimapScores]:
        """The scores of "network", and of "crf" if there is one."""
        given = {"network": self.evaluation.network, "crf": self.evaluation.crf}
        return {name: scores for name, scores in given.items() if scores is not None}


# ---------------------------------------------------------------- tables


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _row(name: str, values: Sequence[float]) -> list[str]:
    """Format percentages, followed by the gain if there are two."""
    cells = [name, *map(_percent, values)]
    if len(values) == 2:
        points = 100 * (values[1] - values[0])
        cells.append("-" if math.isnan(points) else f"{points:+.2f}")
    return cells


def _header(report: Report, first: str) -> list[str]:
    return [first, "network", "with CRF", "gain"] if len(report.stages) == 2 else [first, "network"]


def score_rows(report: Report) -> list[list[str]]:
    """Return a header, a row for each class's IoU, and rows for the set, in per cent."""
    matrices = [scores.whole for scores in report.stages.values()]
    rows = [_header(report, "IoU")]
    rows += [_row(name, [matrix.iou[i] for matrix in matrices]) for i, name in enumerate(report.classes)]
    for title, number in (
        ("mean IoU", "mean_iou"),
        ("pixel accuracy", "pixel_accuracy"),
        ("class accuracy", "class_accuracy"),
    ):
        rows.append(_row(title, [getattr(matrix, number) for matrix in matrices]))
    return rows


def trimap_rows(report: Report) -> list[list[str]]:
    """Return a header and a row for each of `SHOWN_WIDTHS`: the mean IoU in the band, in per cent."""
    rows = [_header(report, "mean IoU in the band of half-width")]
    rows += [
        _row(f"{width}", [scores.band(width).mean_iou for scores in report.stages.values()]) for width in SHOWN_WIDTHS
    ]
    return rows


def one_line(text: str) -> str:
    """Replace line breaks and control characters of a terminal by spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def escaped(value: Any) -> str:
    """Escape a value for Markdown, also within a table's cell.

    Underscores inside words need no backslash.
    """
    return re.sub(r"[\\`*\[\]<>|~&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", one_line(str(value)))


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns for a terminal."""
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*shown, strict=True)]
    lines = []
    for name, *cells in shown:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a table of GitHub's Markdown."""
    header, *body = [[escaped(cell) for cell in row] for row in rows]
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(report: Report) -> str:
    """Return the text of results.md."""
    evaluation, settings = report.evaluation, report.settings
    count = len(evaluation.images)
    lines = [f"# {escaped(settings['data'])}: {count} image{'' if count == 1 else 's'}"]
    lines.append("\n".join(f"- {name}: {escaped(value)}" for name, value in settings.items() if name != "data"))
    lines.append(f"- {evaluation.seconds:.1f} s ({', '.join(_stage_times(evaluation.images))})")
    lines += ["In per cent; one confusion matrix over all images, void left out.", as_markdown(score_rows(report))]
    lines += [escaped(line) for line in absent_lines(report)]
    around = BAND_WORDS[evaluation.network.kind]
    lines += [f"Inside bands around {around}, w pixels to either side:", as_markdown(trimap_rows(report))]
    return "\n\n".join(line for line in lines if line) + "\n"


def absent_lines(report: Report) -> list[str]:
    """Return sentences on what no score covers.

    These are classes and images without a labelled pixel, and bands without any.
    """
    matrices = {name: scores.whole for name, scores in report.stages.items()}

    def names(numbers: Sequence[int]) -> str:
        return ", ".join(one_line(report.classes[i]) for i in numbers)

    lines = []
    if unlabelled := matrices["network"].unlabelled:
        lines.append(f"Without a pixel in the labels, so with an IoU of 0 where predicted: {names(unlabelled)}.")
    for name, matrix in matrices.items():
        if matrix.absent:
            lines.append(
                f"Neither in the labels nor predicted ({name}), so not part of the mean: {names(matrix.absent)}."
            )
    void = [one_line(image.name) for image in report.evaluation.images if math.isnan(image.pixel_accuracy[0])]
    count = len(report.evaluation.images)
    if void:
        lines.append(
            f"Without a labelled pixel, so not part of any number: {len(void)} of {count} images, {shortened(void)}."
        )
    if report.evaluation.network.band(MAX_WIDTH).num_pixels == 0:
        lines.append(f"No pixel lies in a band: the labels have no {BAND_WORDS[report.evaluation.network.kind]}.")
    return lines


def _stage_times(images: Sequence[ImageScore]) -> list[str]:
    totals = stage_seconds(images)
    return [f"{name} {1000 * seconds / max(len(images), 1):.0f} ms an image" for name, seconds in totals.items()]


def stage_seconds(images: Sequence[ImageScore]) -> dict[str, float]:
    """Return the seconds of each stage, summed over all images.

    They exceed the elapsed time where images run side by side.
    """
    totals: dict[str, float] = {}
    for image in images:
        for name, seconds in image.seconds.items():
            totals[name] = totals.get(name, 0.0) + seconds
    return totals


# ---------------------------------------------------------------- files


def as_json(report: Report) -> dict[str, Any]:
    """Return the content of results.json: plain data, NaN as None."""
    evaluation = report.evaluation
    data: dict[str, Any] = {
        "settings": dict(report.settings),
        "classes": list(report.classes),
        "images": len(evaluation.images),
        "seconds": evaluation.seconds,
        "stage_seconds": stage_seconds(evaluation.images),
        "trimap": {"kind": evaluation.network.kind, "widths": list(range(1, MAX_WIDTH + 1))},
    }
    for name, scores in report.stages.items():
        matrix = scores.whole
        data[name] = {
            "mean_iou": matrix.mean_iou,
            "pixel_accuracy": matrix.pixel_accuracy,
            "class_accuracy": matrix.class_accuracy,
            "iou": dict(zip(report.classes, matrix.iou.tolist(), strict=True)),
            "absent": [report.classes[i] for i in matrix.absent],
            "unlabelled": [report.classes[i] for i in matrix.unlabelled],
            "matrix": matrix.matrix.tolist(),
        }
        data["trimap"][name] = scores.curves()
    data["per_image"] = [
        {"name": image.name, "pixel_accuracy": image.pixel_accuracy, "mean_iou": image.mean_iou}
        for image in evaluation.images
    ]
    plain: dict[str, Any] = _without_nan(data)
    return plain


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def clear_results(folder: Path) -> None:
    """Remove the results of an earlier evaluation from ``folder``."""
    for name in REPORT_FILES:
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "examples").glob("*.png"):
        if _EXAMPLE.fullmatch(path.name):
            path.unlink()


def write_results(report: Report, folder: Path) -> None:
    """Write results.json and results.md into ``folder``, each whole or not at all."""
    texts = {"results.md": markdown(report), "results.json": json.dumps(as_json(report), indent=1) + "\n"}
    for name, text in texts.items():
        with atomic_write(folder / name) as stream:
            stream.write(text.encode())


def plot_trimap(report: Report, path: Path) -> None:
    """Plot pixel accuracy, class accuracy and mean IoU over the band's half-width.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib. Install it: pip install "deeplab-crf[bench]"') from error
    plot = Figure(figsize=(11, 3.6), layout="constrained")
    labels = {"network": "network", "crf": "network and CRF"}
    curves = {name: scores.curves() for name, scores in report.stages.items()}
    panels = plot.subplots(1, 3)
    titles = {"pixel_accuracy": "pixel accuracy", "class_accuracy": "class accuracy", "mean_iou": "mean IoU"}
    for axes, (number, title) in zip(panels, titles.items(), strict=True):
        for name, curve in curves.items():
            axes.plot(range(1, MAX_WIDTH + 1), 100 * np.array(curve[number]), label=labels[name])
        axes.set_xlabel("half-width of the band (pixels)")
        axes.set_ylabel(f"{title} (%)")
        axes.grid(alpha=0.3)
    panels[0].legend()
    plot.suptitle(f"{report.settings['data']}: near {BAND_WORDS[report.evaluation.network.kind]}")
    with atomic_write(path) as stream:
        plot.savefig(stream, format="png", dpi=130)


# ---------------------------------------------------------------- examples


def choose_examples(images: Sequence[ImageScore], count: int) -> dict[str, ImageScore]:
    """Choose the images that the CRF changed most in pixel accuracy for the worse and the better.

    Without a CRF, choose those of the lowest and the highest pixel accuracy.

    Args:
        images: The scores of all images.
        count: The number of each kind.

    Returns:
        The images by the stems of their figures, such as "worst-1-NAME".
    """
    scored = [image for image in images if not math.isnan(image.gain) and not math.isnan(image.pixel_accuracy[0])]
    ranked = sorted(
        scored, key=lambda image: image.pixel_accuracy[0] if image.pixel_accuracy[1] is None else image.gain
    )
    worst = ranked[: min(count, len(ranked) // 2)]
    best = ranked[len(worst) :][::-1][:count]
    chosen = {f"worst-{place}-{image.name}": image for place, image in enumerate(worst, 1)}
    return chosen | {f"best-{place}-{image.name}": image for place, image in enumerate(best, 1)}


def write_example(prediction: Prediction, classes: Sequence[str], path: Path) -> None:
    """Write image, labels, network and CRF side by side, with a legend; void is black."""
    example = prediction.example
    shown = {"labels": example.labels, "network": prediction.network}
    if prediction.crf is not None:
        shown["network and CRF"] = prediction.crf
    colours = class_palette(classes)
    panels = [("image", Image.fromarray(example.image))]
    panels += [(title, _painted(example.image, ids, colours)) for title, ids in shown.items()]
    seen = np.unique(np.concatenate([ids.ravel() for ids in shown.values()]))
    write_image(path, figure(panels, {int(i): classes[i] for i in seen if i != IGNORE}, colours))


def _painted(image: NDArray[np.uint8], ids: NDArray[np.uint8], colours: tuple[int, ...] | None) -> Image.Image:
    painted = np.array(overlay(image, LabelImage(ids.astype(np.int64), colours), opacity=0.7))
    painted[ids == IGNORE] = 0
    return Image.fromarray(painted)
