"""``deeplab-crf evaluate``: score a network or saved scores before and after the CRF."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplab_crf.cli.interrupts import remembered_interrupts
from deeplab_crf.cli.jobs import SKIP, existing_options
from deeplab_crf.cli.network import (
    NETWORK_OPTIONS,
    check_classes,
    make_pipeline,
    needs_torch,
    network_options,
    recorded_options,
)
from deeplab_crf.cli.options import (
    cam_option,
    crf_options,
    data_options,
    device_option,
    held_back_options,
    open_data,
    out_option,
)
from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.data.results import FileJob, ResultFolder, score_jobs
from deeplab_crf.data.scores import KINDS as SCORE_KINDS
from deeplab_crf.evaluation.class_pixels import check_two_classes, count_pixels
from deeplab_crf.evaluation.report import REPORT_FILES
from deeplab_crf.evaluation.trimap import KINDS as TRIMAP_KINDS
from deeplab_crf.models.bundled import WEIGHTS
from deeplab_crf.runtime.checks import MAX_THREADS
from deeplab_crf.runtime.files import check_writable, matching_name, score_files
from deeplab_crf.runtime.threads import get_num_threads

if TYPE_CHECKING:
    from deeplab_crf.evaluation.evaluate import Evaluation, ScoreSource, Task
    from deeplab_crf.evaluation.report import Report
    from deeplab_crf.runtime.processes import World

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
    help="Kind of scores by other programs. Default: by the key's name, or by the numbers if certain.",
)
@click.option("--key", help="Array to read from .npz files of other programs.")
@click.option(
    "--align-corners",
    is_flag=True,
    help="Upsample coarse scores of other programs so that corner samples meet corner pixels.",
)
@cam_option
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Probability of each label of predicted label maps before the CRF. Default: 0.7, as in refine.",
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
    help="Save the network's scores, NAME.npz for each image, for --scores and tune.",
)
@out_option("Write results.json, results.md, trimap.png and examples.", required=False)
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True,
              help="Number of images in figures of those that the CRF made worst, and best.")  # fmt: skip
@existing_options
def evaluate(out: Path | None, examples: int, existing: str | None, **options: Any) -> None:
    """Score a network and its CRF on a data set.

    Reports the IoU of each class, mean IoU and accuracies, from one confusion matrix over all
    images, and the same near the edges of objects (trimap).

    Existing results of the same data, network and settings in FOLDER are kept. Others are refused
    without --overwrite, which replaces all of them.

    Under torchrun, every process evaluates a share of the images, and the first one reports.
    """
    _check_options(options)
    dataset = open_data(options)
    check_two_classes(dataset, options["data"][2], count_pixels(dataset, enough=2), "measured")
    for folder in (out, options["save_scores"]):
        if folder is not None:
            check_writable(folder)
    plan = _Plan(dataset, out, examples, existing, options)
    if plan.is_done():
        return
    with needs_torch("evaluate"):
        import torch  # takes seconds: not for --help

        from deeplab_crf.runtime.processes import join_world
    try:
        world = join_world(options["device"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
    threads = options["threads"] or max(1, get_num_threads() // world.local_size)
    torch.set_num_threads(threads)
    workers = options["workers"] or (threads if world.device.type == "cpu" else 2)
    task, settings = _task(plan, options, world.device, threads)
    with plan.recorded() if world.is_main else nullcontext():
        evaluation = _run(task, world, workers, max(1, threads // workers))
        if not world.is_main:
            return
        counts = {"threads": threads, "workers": workers, "processes": world.size}
        report = _print_report(evaluation, dataset, {**settings, **counts})
        if out is not None:
            _write(report, task, out, examples)


class _Plan:
    """The files that an evaluation writes, and the records of their inputs."""

    def __init__(
        self,
        dataset: SegmentationFolder,
        out: Path | None,
        examples: int,
        existing: str | None,
        options: dict[str, Any],
    ) -> None:
        self.dataset, self.existing, self.job = dataset, existing, FileJob((), ())
        self.results: ResultFolder | None = None
        self.scores: ResultFolder | None = None
        self._score_jobs: list[FileJob] = []
        if options["save_scores"] is not None:
            names = (*NETWORK_OPTIONS, "device")
            settings = recorded_options("scores", {name: options[name] for name in names})
            self.scores = ResultFolder(options["save_scores"], settings)
            self._score_jobs = list(score_jobs(dataset, self.scores.folder).values())
        if out is not None:
            settings = recorded_options("evaluate", options)
            settings |= {"classes": dataset.classes, "coding": dataset.coding, "examples": examples}
            self.results = ResultFolder(out, settings)
            inputs = [path for item in dataset.items for path in (item.image, item.labels)]
            found = {} if options["scores"] is None else score_files(options["scores"])
            inputs += [found[name] for item in dataset.items if (name := matching_name(item.name)) in found]
            self.job = FileJob(tuple(inputs), self.results.outputs_with(out / "results.json"))

    def is_done(self) -> bool:
        """Return whether there is nothing to do, and say so.

        Raises:
            ValueError: Files of unknown origin, other data or other settings exist, and
                ``existing`` is None.
        """
        wanted = [path for job in self._score_jobs for path in job.outputs]
        if self.results is not None:
            wanted = [self.results.folder / REPORT_FILES[-1]]
        if self.existing == SKIP and wanted and all(path.exists() for path in wanted):
            click.echo(f"{wanted[-1].parent} has results, skipped")
            return True
        if self.existing is not None:
            return False
        if self.scores is not None:
            self.scores.check_known(self._score_jobs)
        if self.results is None:
            return False
        out = self.results.folder
        self.results.check_known([FileJob((), tuple(out / name for name in REPORT_FILES))])
        if not (out / REPORT_FILES[-1]).exists():
            return False
        if not self.results.is_current(self.job):
            raise ValueError(
                f"{out} holds results of other data, weights or settings, or files that were changed since: choose another folder, "
                "replace them with --overwrite, or keep them with --skip-existing"
            )
        if self.scores is not None and not all(map(self.scores.is_current, self._score_jobs)):
            return False
        click.echo(f"{out} is up to date; --overwrite makes it anew")
        return True

    def recorded(self) -> AbstractContextManager[None]:
        """Within the block, results are written and recorded with the data at its beginning."""
        return nullcontext() if self.results is None else self.results.making(self.job)


def _print_report(evaluation: Evaluation, dataset: SegmentationFolder, settings: dict[str, Any]) -> Report:
    from deeplab_crf.evaluation.report import Report, absent_lines, as_text, score_rows, trimap_rows

    report = Report(evaluation, dataset.classes, settings)
    click.echo(as_text(score_rows(report)))
    click.echo()
    click.echo(as_text(trimap_rows(report)))
    for line in absent_lines(report):
        click.echo(f"\n{line}")
    click.echo(f"\n{len(evaluation.images)} images in {evaluation.seconds:.1f} s")
    return report


def _check_options(options: dict[str, Any]) -> None:
    """Raise UsageError for options that exclude each other."""
    useless: tuple[str, ...] = ("scores_are", "key", "align_corners", "cam_background", "confidence")
    condition = "with --scores alone"
    if options["scores"] is not None:
        useless, condition = (*NETWORK_OPTIONS, "save_scores"), "with a network, not with --scores"
    for option in useless:
        if options[option] not in (None, False):
            raise click.UsageError(f"--{option.replace('_', '-')} is of use {condition}")


def _task(plan: _Plan, options: dict[str, Any], device: Any, threads: int) -> tuple[Task, dict[str, Any]]:
    """Return the task, and the settings for the report."""
    from deeplab_crf.evaluation.evaluate import Task

    dataset = plan.dataset
    kind, root, split = options["data"]
    part = {name: options[name] for name in ("val_fraction", "val_seed") if options[name] is not None}
    settings = {"data": f"{kind} {split} ({root})", **part, "device": str(device)}
    if str(dataset.coding):
        settings["labels"] = str(dataset.coding)
    if options["scores"] is None:
        source, crf, preset, used = _network(plan, options, device, threads)
    else:
        source, crf, preset, used = _files(dataset, options, device)
    settings |= used | {"crf": preset if crf is not None else "none", "min_probability": options["min_probability"]}
    return Task(dataset, source, crf, options["min_probability"], options["trimap"]), settings


def _network(
    plan: _Plan, options: dict[str, Any], device: Any, threads: int
) -> tuple[ScoreSource, Any, str, dict[str, Any]]:
    """Return the source of scores, the CRF, the preset's name, and settings for the report."""
    from deeplab_crf.evaluation.evaluate import NetworkScores, RecordedScores

    dataset = plan.dataset
    given = {name: options[name] for name in ("crf", "preset", "min_probability")}
    pipeline = make_pipeline(options, **given, device=str(device), threads=threads)
    network, weights = pipeline.network, options["weights"] or WEIGHTS
    check_classes(network, weights, dataset)
    used = {"weights": str(weights), "model": network.variant.name, "scales": list(network.scales)}
    scores = NetworkScores(pipeline, options["save_scores"])
    return (
        scores if plan.scores is None else RecordedScores(scores, dataset, plan.scores),
        pipeline.crf,
        options["preset"] or network.usage.crf or network.variant.crf,
        used | {"longer_side": pipeline.longer_side, "pad_to": pipeline.pad_to},
    )


def _files(
    dataset: SegmentationFolder, options: dict[str, Any], device: Any
) -> tuple[ScoreSource, Any, str, dict[str, Any]]:
    """Return the same as `_network` for scores from a folder."""
    from deeplab_crf.crf.dense_crf import DenseCRF
    from deeplab_crf.evaluation.evaluate import FileScores, ScoreReading
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
    names = ("scores_are", "key", "align_corners", "cam_background", "confidence")
    used = {"scores": str(options["scores"])} | {name: options[name] for name in names if options[name]}
    return FileScores(dataset, options["scores"], reading, device), crf, preset, used


def _run(task: Task, world: World, workers: int, threads: int) -> Evaluation:
    """Evaluate, with a progress bar in the main process."""
    from deeplab_crf.evaluation.evaluate import evaluate_share

    share = -(-len(task.dataset) // world.size)
    progress = click.progressbar(length=share, label="evaluate", file=sys.stderr) if world.is_main else nullcontext()
    with remembered_interrupts() as check_interrupts, progress as bar:

        def on_image() -> None:
            check_interrupts()
            if bar is not None:
                bar.update(1)

        return evaluate_share(task, world, workers=workers, threads=threads, on_image=on_image)


def _write(report: Report, task: Task, out: Path, examples: int) -> None:
    from deeplab_crf.evaluation.evaluate import predict
    from deeplab_crf.evaluation.report import (
        choose_examples,
        clear_results,
        plot_trimap,
        write_example,
        write_results,
    )  # fmt: skip

    clear_results(out)
    for stem, image in choose_examples(report.evaluation.images, examples).items():
        write_example(predict(task, image.index), report.classes, out / "examples" / f"{stem}.png")
    try:
        plot_trimap(report, out / "trimap.png")
    except ImportError as error:
        click.echo(f"Note: trimap.png is left out: {error}", err=True)
    write_results(report, out)  # last, so that a folder with results.json has everything
    click.echo(f"wrote {out}")
