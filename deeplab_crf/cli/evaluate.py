"""``deeplab-crf evaluate``: a network, or saved scores, on a labelled data set, before and after the CRF."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplab_crf.checks import MAX_THREADS
from deeplab_crf.cli.interrupts import remembered_interrupts
from deeplab_crf.cli.network import NETWORK_OPTIONS, make_pipeline, network_options
from deeplab_crf.cli.options import (
    cam_option,
    crf_options,
    data_options,
    device_option,
    held_back_options,
    open_data,
    out_option,
)
from deeplab_crf.core.threads import get_num_threads
from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.data.files import check_writable
from deeplab_crf.data.scores import KINDS as SCORE_KINDS
from deeplab_crf.engine.class_pixels import check_two_classes, count_pixels
from deeplab_crf.engine.trimap import KINDS as TRIMAP_KINDS
from deeplab_crf.models.bundled import WEIGHTS

if TYPE_CHECKING:
    from deeplab_crf.engine.distributed import World
    from deeplab_crf.engine.evaluate import Evaluation, ScoreSource, Task
    from deeplab_crf.engine.evaluate_report import Report

DEFAULT_PRESET = "pydensecrf"  # of scores, which do not say what network they are of


@click.command()
@data_options
@held_back_options
@network_options
@click.option(
    "--scores",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Instead of a network: NAME.npz or NAME.npy for each image, by --save-scores or by other programs, or predicted label "
    "maps, NAME.png.",
)
@click.option(
    "--scores-are",
    type=click.Choice(SCORE_KINDS),
    help="What others' scores are. Default: by the key's name, or by the numbers if certain.",
)
@click.option("--key", help="Which array of others' .npz files.")
@click.option(
    "--align-corners", is_flag=True, help="Upsample others' coarse scores so that corner samples meet corner pixels."
)
@cam_option
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="How probable each label of predicted label maps is before the CRF. Default: 0.7, as in refine.",
)
@crf_options(
    "Also score the labels after the dense CRF.",
    f"Settings of the CRF, by default the network's own, for --scores {DEFAULT_PRESET}",
)
@click.option(
    "--trimap",
    type=click.Choice(TRIMAP_KINDS),
    default="boundary",
    show_default=True,
    help="Score bands around borders between classes, or around void: the papers' trimap, for PASCAL VOC.",
)
@device_option
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="Default: all cores, shared with torchrun's other processes."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Images at a time. Default: as many as threads on the CPU, else 2. Fewer take less memory.",
)
@click.option(
    "--save-scores",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep the network's scores, NAME.npz for each image, for --scores and tune.",
)
@out_option("Write results.json, results.md, trimap.png and examples.", required=False)
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True,
              help="Figures of so many images that the CRF made worst, and best.")  # fmt: skip
def evaluate(out: Path | None, examples: int, **options: Any) -> None:
    """Score a network and its CRF on a data set: IoU of each class, mean IoU and accuracies, from one confusion matrix over all
    images, and near the edges of objects (trimap).

    Under torchrun every process takes a share of the images, and the first one reports.
    """
    _check_options(options)
    dataset = open_data(options)
    check_two_classes(dataset, options["data"][2], count_pixels(dataset, enough=2), "measured")
    for folder in (out, options["save_scores"]):
        if folder is not None:
            check_writable(folder)
    try:
        import torch  # takes seconds: not for --help

        from deeplab_crf.engine.distributed import join_world
    except ModuleNotFoundError as error:
        raise ImportError('evaluate needs torch, which is not installed: pip install "deeplab-crf[torch]"') from error
    try:
        world = join_world(options["device"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
    threads = options["threads"] or max(1, get_num_threads() // world.local_size)
    torch.set_num_threads(threads)
    workers = options["workers"] or (threads if world.device.type == "cpu" else 2)
    task, settings = _task(dataset, options, world.device, threads)
    evaluation = _run(task, world, workers, max(1, threads // workers))
    if not world.leads:
        return
    from deeplab_crf.engine.evaluate_report import Report, absent_lines, as_text, score_rows, trimap_rows

    counts = {"threads": threads, "workers": workers, "processes": world.size}
    report = Report(evaluation, dataset.classes, {**settings, **counts})
    click.echo(as_text(score_rows(report)))
    click.echo()
    click.echo(as_text(trimap_rows(report)))
    for line in absent_lines(report):
        click.echo(f"\n{line}")
    click.echo(f"\n{len(evaluation.images)} images in {evaluation.seconds:.1f} s")
    if out is not None:
        _write(report, task, out, examples)


def _check_options(options: dict[str, Any]) -> None:
    """Raises UsageError for options that do not go together."""
    useless: tuple[str, ...] = ("scores_are", "key", "align_corners", "cam_background", "confidence")
    why = "with --scores alone"
    if options["scores"] is not None:
        useless, why = (*NETWORK_OPTIONS, "save_scores"), "with a network, not with --scores"
    for option in useless:
        if options[option] not in (None, False):
            raise click.UsageError(f"--{option.replace('_', '-')} is of use {why}")


def _task(
    dataset: SegmentationFolder, options: dict[str, Any], device: Any, threads: int
) -> tuple[Task, dict[str, Any]]:
    """What to evaluate, and the settings as the report shows them."""
    from deeplab_crf.engine.evaluate import Task

    kind, root, split = options["data"]
    part = {name: options[name] for name in ("val_fraction", "val_seed") if options[name] is not None}
    settings = {"data": f"{kind} {split} ({root})", **part, "device": str(device)}
    if str(dataset.coding):
        settings["labels"] = str(dataset.coding)
    if options["scores"] is None:
        source, crf, preset, used = _network(dataset, options, device, threads)
    else:
        source, crf, preset, used = _files(dataset, options, device)
    settings |= used | {"crf": preset if crf is not None else "none", "min_probability": options["min_probability"]}
    return Task(dataset, source, crf, options["min_probability"], options["trimap"]), settings


def _network(
    dataset: SegmentationFolder, options: dict[str, Any], device: Any, threads: int
) -> tuple[ScoreSource, Any, str, dict[str, Any]]:
    """The source of scores, the CRF, the name of its settings, and what the report says of the network."""
    from deeplab_crf.engine.evaluate import NetworkScores

    given = {name: options[name] for name in ("crf", "preset", "min_probability")}
    pipeline = make_pipeline(options, **given, device=str(device), threads=threads)
    network, weights = pipeline.network, options["weights"] or WEIGHTS
    if network.num_classes != len(dataset.classes):
        raise ValueError(
            f"{weights}: the network must have the data set's {len(dataset.classes)} classes; got {network.num_classes}. "
            "Name one of that many with --weights"
        )
    used = {"weights": str(weights), "model": network.variant.name, "scales": list(network.scales)}
    source = NetworkScores(pipeline, options["save_scores"])
    return (
        source,
        pipeline.crf,
        options["preset"] or network.usage.crf or network.variant.crf,
        used | {"longer_side": pipeline.longer_side, "pad_to": pipeline.pad_to},
    )


def _files(
    dataset: SegmentationFolder, options: dict[str, Any], device: Any
) -> tuple[ScoreSource, Any, str, dict[str, Any]]:
    """The same for scores from a folder."""
    from deeplab_crf.crf.dense_crf import DenseCRF
    from deeplab_crf.engine.evaluate import FileScores, ScoreReading
    from deeplab_crf.ops.library import CUDA_BUILT

    preset = options["preset"] or DEFAULT_PRESET
    crf = DenseCRF.from_preset(preset, len(dataset.classes)) if options["crf"] else None
    if crf is not None and device.type == "cuda" and CUDA_BUILT:
        crf.to(device)
    reading = ScoreReading(
        options["scores_are"],
        options["key"],
        options["align_corners"],
        options["cam_background"],
        ScoreReading.confidence if options["confidence"] is None else options["confidence"],
    )
    return FileScores(dataset, options["scores"], reading, device), crf, preset, {"scores": str(options["scores"])}


def _run(task: Task, world: World, workers: int, threads: int) -> Evaluation:
    """The scores, under a progress bar of the process that leads."""
    from deeplab_crf.engine.evaluate import evaluate_share

    share = -(-len(task.dataset) // world.size)
    progress = click.progressbar(length=share, label="evaluate", file=sys.stderr) if world.leads else nullcontext()
    with remembered_interrupts() as check_interrupts, progress as bar:

        def on_image() -> None:
            check_interrupts()
            if bar is not None:
                bar.update(1)

        return evaluate_share(task, world, workers=workers, threads=threads, on_image=on_image)


def _write(report: Report, task: Task, out: Path, examples: int) -> None:
    from deeplab_crf.engine.evaluate import predict
    from deeplab_crf.engine.evaluate_report import choose_examples, plot_trimap, write_example, write_results

    write_results(report, out)
    for stem, image in choose_examples(report.evaluation.images, examples).items():
        write_example(predict(task, image.index), report.classes, out / "examples" / f"{stem}.png")
    try:
        plot_trimap(report, out / "trimap.png")
    except ImportError as error:
        click.echo(f"Note: trimap.png is left out: {error}", err=True)
    click.echo(f"wrote {out}")
