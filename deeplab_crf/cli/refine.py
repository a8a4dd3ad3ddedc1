"""``deeplab-crf refine``: refine the labels or scores of an image or of folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from deeplab_crf.cli.jobs import JobRun, existing_options, may_write, report_failures
from deeplab_crf.cli.options import (
    LABEL_OPTIONS,
    PRESET_HELP,
    cam_option,
    image_range_option,
    known_preset,
    label_coding,
)
from deeplab_crf.core.pairwise import NORMALIZATIONS, Bilateral, Gaussian, Kernel
from deeplab_crf.core.presets import get_preset
from deeplab_crf.crf.refine_files import ORIENTATIONS, Job, Plan, RefineSettings, plan_file, plan_folders, refine_file
from deeplab_crf.data.results import ResultFolder
from deeplab_crf.data.scores import KINDS
from deeplab_crf.runtime.checks import MAX_THREADS
from deeplab_crf.runtime.devices import find_device

F = TypeVar("F", bound=Callable[..., Any])


def _widths(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number, or several separated by commas") from None


def _ignore_label(_context: click.Context, _option: click.Parameter, value: str) -> int | None:
    if value == "none":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a class id nor none") from None


def _device(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        find_device(value)
    except (ValueError, RuntimeError, ImportError) as error:
        raise click.BadParameter(str(error)) from None
    return value


_CRF_OPTIONS = (
    click.option("--preset", callback=known_preset, default="pydensecrf", show_default=True, metavar="NAME|FILE",
                 help=f"Settings: {PRESET_HELP}. The options below change single values."),
    click.option("--gaussian-sxy", callback=_widths, metavar="NUMBERS",
                 help="Width of the smoothness kernel in pixels: S or SX,SY."),
    click.option("--gaussian-weight", type=float, help="Weight of the smoothness kernel; 0 leaves it out."),
    click.option("--bilateral-sxy", callback=_widths, metavar="NUMBERS",
                 help="Width of the appearance kernel in pixels: S or SX,SY."),
    click.option("--bilateral-srgb", callback=_widths, metavar="NUMBERS",
                 help="Its width in colour, of 255: S or SR,SG,SB."),
    click.option("--bilateral-weight", type=float, help="Weight of the appearance kernel; 0 leaves it out."),
    click.option("--iterations", type=click.IntRange(0), help="Mean field iterations."),
    click.option("--normalization", type=click.Choice(NORMALIZATIONS), help="How kernels are normalised."),
    click.option("--damping", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True,
                 help="Share of the old probabilities in each iteration."),
    click.option("--tolerance", type=click.FloatRange(0), default=0.0, show_default=True,
                 help="Stop when no probability changes by more; 0 runs all iterations."),
    click.option("--threads", type=click.IntRange(1, MAX_THREADS),
                 help="Default: DEEPLAB_CRF_NUM_THREADS, OMP_NUM_THREADS or the usable cores."),
    click.option("--device", callback=_device, metavar="cpu|cuda|cuda:N", default="cpu", show_default=True,
                 help="Device; cuda needs torch and a build with CUDA, see deeplab-crf info."),
)  # fmt: skip

_INPUT_OPTIONS = (
    image_range_option,
    click.option("--orientation", type=click.Choice(ORIENTATIONS),
                 help="For images that EXIF rotates or mirrors: the pixels of labels and scores. Default: by the size."),
    click.option("--scores-are", type=click.Choice(KINDS),
                 help="Kind of .npy and .npz scores. Default: by the key's name, or by the numbers if certain."),
    click.option("--key", help="Array to read from an .npz file."),
    cam_option,
    click.option("--align-corners", is_flag=True,
                 help="Upsample coarse scores so that corner samples meet corner pixels (DeepLab's Caffe models)."),
    click.option("--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.7,
                 show_default=True, help="For labels: probability of each given label."),
    click.option("--num-labels", type=click.IntRange(2),
                 help="For labels: number of classes. Default: only those in the file compete."),
    click.option("--ignore-label", callback=_ignore_label, metavar="ID|none", default="255",
                 show_default=True, help="For labels: the id of unlabelled pixels, to be filled in."),
)  # fmt: skip


def _options(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command()
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.argument("scores", metavar="LABELS_OR_SCORES", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="OUT.png, or a folder if folders are given."
)
@click.option("--overlay", is_flag=True, help="Also write the labels painted over the image: <stem>_overlay.png.")
@click.option(
    "--probabilities", is_flag=True, help="Also write float32 (C, H, W) and the class ids: <stem>_probabilities.npz."
)
@existing_options
@_options(_CRF_OPTIONS)
@_options(_INPUT_OPTIONS)
@_options(LABEL_OPTIONS)
def refine(
    image: Path, scores: Path, out: Path, overlay: bool, probabilities: bool, existing: str | None, **crf: Any
) -> int:
    """Refine a label image or per-class scores so that they follow the edges of IMAGE.

    LABELS_OR_SCORES is an image of class ids (one channel or palette; the palette is kept) or an
    array in .npy or .npz: scores (C, H, W), upsampled bilinearly if they are coarser than the
    image, or integer labels (H, W). With two folders instead of two files, files are matched by
    stem and results go to the folder OUT.

    An existing OUT.png is refused. In a folder, results of the same files with the same settings
    are skipped; others are made again.
    """
    settings = _settings(crf)
    extras = {"with_overlay": overlay, "with_probabilities": probabilities}
    if image.is_dir() != scores.is_dir():
        raise click.UsageError("IMAGE and LABELS_OR_SCORES must be two files or two folders")
    if image.is_dir():
        if out.exists() and not out.is_dir():
            raise click.BadParameter(f"{out} is a file; folders go to a folder", param_hint="-o")
        return _refine_folders(plan_folders(image, scores, out, **extras), settings, out, existing)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise click.BadParameter(f"{out} must be a file name that ends in .png", param_hint="-o")
    return _refine_one(plan_file(image, scores, out, **extras), settings, existing)


def _settings(crf: dict[str, Any]) -> RefineSettings:
    """Return the preset with given options in place of its values."""
    preset, coding = get_preset(crf.pop("preset")), label_coding(crf)
    changes = {
        Gaussian: {"sxy": crf.pop("gaussian_sxy"), "weight": crf.pop("gaussian_weight")},
        Bilateral: {
            "sxy": crf.pop("bilateral_sxy"),
            "srgb": crf.pop("bilateral_srgb"),
            "weight": crf.pop("bilateral_weight"),
        },
    }
    iterations, normalization = crf.pop("iterations"), crf.pop("normalization")
    try:
        kernels: list[Kernel] = []
        for kernel in preset.kernels:
            given = {name: value for name, value in changes[type(kernel)].items() if value is not None}
            if given.get("weight") != 0:
                kernels.append(replace(kernel, **given))
        return RefineSettings(
            kernels=tuple(kernels),
            iterations=preset.iterations if iterations is None else iterations,
            normalization=normalization or preset.normalization,
            coding=coding,
            **crf,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _refine_one(job: Job, settings: RefineSettings, existing: str | None) -> int:
    if not may_write(job.outputs, existing):
        return 0
    for remark in refine_file(job, settings):
        click.echo(remark)
    click.echo(f"wrote {', '.join(str(path) for path in job.outputs)}")
    return 0


def _refine_folders(plan: Plan, settings: RefineSettings, out: Path, existing: str | None) -> int:
    """Run all jobs; return exit status 1 if any failed."""
    run = JobRun(plan.jobs, ResultFolder(out, settings.recorded()), existing)
    remarks: Counter[str] = Counter()
    failures = [f"{path}: no image has this stem" for path in plan.without_image]
    failures += run.run(lambda job: remarks.update(refine_file(job, settings)), "refine")
    for remark, count in remarks.items():
        click.echo(f"{count} x {remark}")
    without = f"; {len(plan.without_scores)} images have no labels or scores" if plan.without_scores else ""
    click.echo(run.summary() + without)
    return report_failures(failures)
