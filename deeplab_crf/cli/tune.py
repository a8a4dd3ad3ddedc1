"""``deeplab-crf tune``: tune the CRF for a network and a data set, by search or by gradient."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplab_crf.cli.interrupts import remembered_interrupts
from deeplab_crf.cli.jobs import OVERWRITE, SKIP, existing_options, may_write
from deeplab_crf.cli.network import (
    NETWORK_OPTIONS,
    check_classes,
    make_pipeline,
    needs_torch,
    network_options,
    recorded_options,
)
from deeplab_crf.cli.options import PRESET_HELP, data_options, held_back_options, known_preset, open_data, out_option
from deeplab_crf.core.pairwise import NORMALIZATIONS
from deeplab_crf.core.presets import get_preset
from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.data.results import FileJob, ResultFolder, score_jobs
from deeplab_crf.evaluation.class_pixels import check_two_classes, count_pixels
from deeplab_crf.evaluation.trimap import KINDS as TRIMAP_KINDS
from deeplab_crf.models.bundled import WEIGHTS
from deeplab_crf.runtime.checks import MAX_THREADS
from deeplab_crf.runtime.files import digest_files
from deeplab_crf.runtime.info import __version__
from deeplab_crf.runtime.threads import get_num_threads
from deeplab_crf.tuning.grid import Grid, Setting

if TYPE_CHECKING:
    from deeplab_crf.tuning.images import TuneImages
    from deeplab_crf.tuning.run import Measure, Output, SearchResult, TuningResult

_MOST_VALUES = 1000


def _values(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Parse "3,4.5,6", or "30:10:100" from 30 in steps of 10 up to 100."""
    if value is None:
        return None
    try:
        if ":" not in value:
            return tuple(float(word) for word in value.split(","))
        first, step, last = (float(word) for word in value.split(":"))
        count = int((last - first) / step + 1e-9) + 1  # the last value, too, where steps are not exact
    except (ValueError, ZeroDivisionError, OverflowError):
        raise click.BadParameter(f"{value!r} is neither numbers with commas nor FIRST:STEP:LAST") from None
    if step <= 0 or not 1 <= count <= _MOST_VALUES:
        raise click.BadParameter(f"{value!r} must go from FIRST up to LAST, in at most {_MOST_VALUES} steps above 0")
    return tuple(first + i * step for i in range(count))


def _measure(_context: click.Context, _option: click.Parameter, value: str) -> int | None:
    """Return the width of "trimap:WIDTH"; None for "miou"."""
    kind, _, width = value.partition(":")
    if value == "miou":
        return None
    if kind != "trimap" or not width.isdecimal():
        raise click.BadParameter(f"{value!r} is neither miou nor trimap:WIDTH, such as trimap:5")
    return int(width)


def _grid_option(name: str, text: str) -> Callable[[Any], Any]:
    default = ",".join(f"{value:g}" for value in getattr(Grid(), name))
    option = f"--{name.replace('_', '-')}"
    return click.option(option, callback=_values, metavar="VALUES", help=f"{text} [search; default: {default}]")


@click.command()
@data_options
@held_back_options
@click.option(
    "--scores",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Scores that deeplab-crf evaluate --save-scores wrote. Default: the network's, computed first and saved in -o.",
)
@network_options
@out_option("Folder for preset.toml and the log.")
@click.option("--images", type=click.IntRange(1), help="Number of images, evenly spaced over the split. Default: all.")
@click.option(
    "--measure",
    "width",
    callback=_measure,
    default="miou",
    show_default=True,
    metavar="miou|trimap:WIDTH",
    help="Measure to maximise: mean IoU over all pixels, or within WIDTH pixels of the edges.",
)
@click.option(
    "--trimap",
    type=click.Choice(TRIMAP_KINDS),
    default="boundary",
    show_default=True,
    help="Edges of trimap:WIDTH: borders between classes, or void: the papers' trimap, for PASCAL VOC.",
)
@click.option(
    "--method",
    type=click.Choice(("search", "gradient")),
    default="search",
    show_default=True,
    help="A grid search refined around the best, or gradient descent on the cross-entropy.",
)
@_grid_option("bilateral_weight", "Weights of the appearance kernel: 3,4,5 or FIRST:STEP:LAST.")
@_grid_option("bilateral_sxy", "Its widths in pixels.")
@_grid_option("bilateral_srgb", "Its widths in colour, of 255.")
@_grid_option("gaussian_weight", "Weights of the smoothness kernel.")
@_grid_option("gaussian_sxy", "Its widths in pixels.")
@_grid_option("iterations", "Mean field iterations.")
@click.option(
    "--rounds",
    type=click.IntRange(0),
    help="Refinements around the best, each at half the distance. [search; default: 3]",
)
@click.option(
    "--normalization", type=click.Choice(NORMALIZATIONS), help="How kernels are normalised. [search; default: after]"
)
@click.option(
    "--start",
    callback=known_preset,
    metavar="NAME|FILE",
    help=f"Preset to start from: {PRESET_HELP}. [gradient; required]",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images. [gradient; default: 5]")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Learning rate: the largest relative change in a step. [gradient; default: 0.02]",
)
@click.option("--batch", type=click.IntRange(1), help="Images in a step. [gradient; default: 4]")
@click.option("--seed", type=int, help="Decides the order of the images. [gradient; default: 0]")
@click.option("--name", help="Name of the preset. Default: that of the folder.")
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Default: DEEPLAB_CRF_NUM_THREADS, OMP_NUM_THREADS or the usable cores.",
)
@existing_options
def tune(out: Path, method: str, existing: str | None, **options: Any) -> None:
    """Find the weights and widths of the dense CRF for a network and a data set.

    Writes FOLDER/preset.toml, which refine, segment and evaluate take as --preset FILE, and
    DenseCRF.from_preset as its argument. The search also writes table.csv with all trials and
    heatmap.png, gradient descent writes epochs.csv. Both continue after an interruption. Tune on
    images that the network was not trained on, or at least on some of them. Results of other data
    or settings in FOLDER are refused without --overwrite, which starts afresh.
    """
    _check_options(method, options)
    begun = (out / "checkpoint.pt").exists()  # of a gradient descent that has not ended, whose preset is not final
    if existing == SKIP and not begun and not may_write([out / "preset.toml"], SKIP):
        return
    dataset, data = open_data(options), options["data"]
    with needs_torch("tune"):
        import torch

        from deeplab_crf.tuning.images import TuneImages, spread_evenly  # loads torch: not for --help
        from deeplab_crf.tuning.run import Measure, Output, read_all_scores
    threads = options["threads"] or get_num_threads()
    torch.set_num_threads(threads)  # of the network, and of the layer that learns
    indices = spread_evenly(len(dataset), options["images"])
    measure = Measure(options["width"], options["trimap"])
    check_two_classes(dataset, "these images", count_pixels(dataset, indices, enough=2), "measured")
    output = Output(
        out,
        options["name"] or out.resolve().name,
        f"{len(indices)} images of {data[0]} {data[2]}",
        existing == OVERWRITE,
    )
    scores, digest = read_all_scores(
        options["scores"] or _save_scores(dataset, indices, out, options), dataset, indices
    )
    images = TuneImages(dataset, indices, scores, scored=measure.scored, threads=threads)
    setup = {
        "data": f"{data[0]}:{data[1].resolve()}:{data[2]}", "images": [dataset.items[i].name for i in indices], "scores": digest,
    }  # fmt: skip
    if str(dataset.coding):
        setup["labels"] = str(dataset.coding)
    files = (path for i in indices for path in (dataset.items[i].image, dataset.items[i].labels))
    setup |= {"digest of images and labels": digest_files(files), "version": __version__}
    if method == "search":
        _search(images, measure, setup, output, options)
    else:
        _learn(images, measure, setup, output, options)


_OF_SEARCH = (*Setting._fields, "rounds", "normalization")
_OF_GRADIENT = ("start", "epochs", "rate", "batch", "seed")


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Raise UsageError for options that exclude each other."""
    if options["scores"] is not None:
        for name in NETWORK_OPTIONS:
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} is of use with a network, not with --scores")
    for name in _OF_GRADIENT if method == "search" else _OF_SEARCH:
        if options[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} is of no use with --method {method}")
    if method == "gradient" and options["start"] is None:
        raise click.UsageError("--method gradient needs --start: a name, or the preset.toml of a search")


@contextmanager
def _bar(title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with the remaining time; check for Ctrl-C at every step."""
    with remembered_interrupts() as check, click.progressbar(length=steps, label=title, file=sys.stderr) as bar:

        def advance(count: int) -> None:
            check()
            bar.update(count)

        yield advance


def _save_scores(dataset: SegmentationFolder, indices: Sequence[int], out: Path, options: dict[str, Any]) -> Path:
    """Save the network's scores in ``out``; current ones are not computed again."""
    from deeplab_crf.evaluation.evaluate import NetworkScores, RecordedScores

    weights = options["weights"] or WEIGHTS
    given = " ".join(str(options[name]) for name in NETWORK_OPTIONS[1:])
    digest = hashlib.sha256(given.encode() + weights.read_bytes())
    folder = out / f"scores-{digest.hexdigest()[:8]}"
    results = ResultFolder(folder, recorded_options("scores", {name: options[name] for name in NETWORK_OPTIONS}))
    jobs = score_jobs(dataset, folder)
    missing = [i for i in indices if not results.is_current(jobs[dataset.items[i].name])]
    if missing:
        pipeline = make_pipeline(options, crf=False, threads=options["threads"])
        check_classes(pipeline.network, weights, dataset)
        source = RecordedScores(NetworkScores(pipeline, folder), dataset, results)
        with _bar("scores", len(missing)) as advance:
            for i in missing:
                source.logits(dataset[i])
                advance(1)
    return folder


def _search(
    images: TuneImages, measure: Measure, setup: dict[str, Any], output: Output, options: dict[str, Any]
) -> None:
    from deeplab_crf.tuning.run import Search, run_search

    axes = {name: options[name] for name in Setting._fields if options[name] is not None}
    if "iterations" in axes and all(value == int(value) for value in axes["iterations"]):
        axes["iterations"] = tuple(int(value) for value in axes["iterations"])
    rounds = 3 if options["rounds"] is None else options["rounds"]
    search = Search(Grid(**axes), rounds, options["normalization"] or "after")
    found = run_search(images, search, measure, setup, output, _bar)
    _report_search(found)
    _report(found, measure, output)


def _report_search(found: SearchResult) -> None:
    pairs = zip(Setting._fields, found.trial.setting, strict=True)
    click.echo(f"best of {found.trials} settings: {', '.join(f'{name} {value:g}' for name, value in pairs)}")
    for name in found.edges:
        click.echo(f"Note: {name} is the last that was tried on its side; better ones may lie beyond")
    if found.computed:
        click.echo(f"{found.milliseconds:.1f} ms of CPU time an image and setting, {found.computed} of them")
    if found.heatmap is None:
        click.echo("Note: no heatmap.png: it needs matplotlib, and two numbers that vary", err=True)


def _learn(
    images: TuneImages, measure: Measure, setup: dict[str, Any], output: Output, options: dict[str, Any]
) -> None:
    from deeplab_crf.tuning.gradient import GradientOptions
    from deeplab_crf.tuning.run import run_gradient

    given = {name: options[name] for name in ("epochs", "rate", "batch", "seed") if options[name] is not None}
    learning, start = GradientOptions(**given), get_preset(options["start"])
    settings = {**setup, "measure": str(measure), "learning": learning, "name": output.name}
    results = ResultFolder(output.folder, {**settings, "start": replace(start, name="", description="")})
    job = FileJob((), (output.epochs, output.preset))
    if not output.afresh and results.is_current(job):
        click.echo(f"{output.preset} is up to date; --overwrite begins afresh")
        return
    lines: list[str] = []
    with results.making(job):
        found = run_gradient(
            images, start, learning, measure, output, _bar,
            lambda epoch, matrix: lines.append(f"epoch {epoch.number}: loss {epoch.loss:.4f}, {measure} {matrix.mean_iou:.4f}"),
            setup,
        )  # fmt: skip
    if found.resumed:
        click.echo(f"went on after epoch {found.resumed} of an earlier run")
    for line in lines:
        click.echo(line)
    _report(found, measure, output)


def _report(found: TuningResult, measure: Measure, output: Output) -> None:
    gain = 100 * (found.best.mean_iou - found.network.mean_iou)
    click.echo(
        f"{measure}: network alone {found.network.mean_iou:.4f}, with the CRF {found.best.mean_iou:.4f} ({gain:+.2f} points)"
    )
    click.echo(f"wrote {output.preset}")
