"""``deeplab-crf segment``: photographs to labels, with a DeepLab network and its CRF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplab_crf.cli.jobs import attempt_all, report_failures
from deeplab_crf.cli.options import PRESET_HELP, known_preset
from deeplab_crf.models.variants import VARIANTS
from deeplab_crf.segment import plan_images, segment_file, write_legend

if TYPE_CHECKING:
    from deeplab_crf.models.pipeline import SegmentationPipeline


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the results.",
)
@click.option(
    "--weights",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Trained weights: .caffemodel, .pth or .safetensors; see docs/models.md.",
)
@click.option(
    "--model",
    type=click.Choice(list(VARIANTS)),
    metavar="NAME",
    help=f"The network, where FILE does not say it: {', '.join(VARIANTS)}.",
)
@click.option("--num-classes", type=click.IntRange(1), help="Default: as many as FILE has.")
@click.option(
    "--multi-scale/--single-scale",
    default=None,
    help="See the image at scales 1, 0.75 and 0.5, or at 1 alone. Default: as released.",
)
@click.option(
    "--pad-to",
    type=click.IntRange(1),
    default=513,
    show_default=True,
    metavar="PIXELS",
    help="Pad smaller images to this size, as the released networks saw them; 1 is faster for small images.",
)
@click.option("--crf/--no-crf", default=True, show_default=True, help="Refine with the dense CRF.")
@click.option(
    "--preset",
    callback=known_preset,
    metavar="NAME|FILE",
    help=f"Other settings of the CRF than the network's own: {PRESET_HELP}.",
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Raise probabilities to it before the CRF; re-implementations on pydensecrf use 1e-5.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Where to run: cpu, cuda, cuda:1, mps. The CRF runs there too on CUDA, where it was built with it, else on the CPU.",
)
@click.option("--threads", type=click.IntRange(1), help="Default: all cores.")
@click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Also write overlays, side-by-side figures and a legend.",
)
@click.option("--overwrite", is_flag=True, help="Redo what is there; else finished results are skipped.")  # fmt: skip
def segment(images: tuple[Path, ...], out: Path, pictures: bool, overwrite: bool, **options: Any) -> int:
    """Segment each IMAGE, or the images of a folder, into the classes of a trained network.

    Writes FOLDER/NAME.png (class ids, with PASCAL VOC's palette), FOLDER/overlays/NAME.png, FOLDER/figures/NAME.png (image,
    network, CRF side by side) and FOLDER/legend/legend.png. Photographs are turned upright as their EXIF says.
    """
    plan = plan_images(images, out, with_pictures=pictures)
    jobs = [job for job in plan if overwrite or not job.finished]
    failures: list[str] = []
    if jobs:
        pipeline = make_pipeline(**options)
        if pictures:
            write_legend(out, pipeline.network.num_classes)
        failures = attempt_all(jobs, lambda job: segment_file(job, pipeline), "segment", lambda job: (job.image,))
    skipped = len(plan) - len(jobs)
    click.echo(
        f"{len(plan) - len(failures)} of {len(plan)} done"
        + (f", {skipped} of them before (--overwrite redoes them)" if skipped else "")
        + f"; results in {out}"
    )
    return report_failures(failures)


def make_pipeline(
    *,
    weights: Path,
    model: str | None,
    num_classes: int | None,
    multi_scale: bool | None,
    pad_to: int,
    crf: bool,
    preset: str | None,
    min_probability: float,
    device: str,
    threads: int | None,
) -> SegmentationPipeline:
    """The network with its weights on the device, and the CRF. Raises ImportError that says what to install without torch."""
    from deeplab_crf.models import SegmentationPipeline, load_model  # loads torch, which takes seconds: not for --help

    place = torch_device(device, threads)
    network, report = load_model(weights, model, num_classes=num_classes, multi_scale=multi_scale)
    click.echo(
        f"{network.variant.name}, {network.num_classes} classes, from {weights} ({report.format} names)", err=True
    )
    refined = (preset or network.variant.crf) if crf else None
    pipeline = SegmentationPipeline(network, refined, min_probability=min_probability, pad_to=pad_to)
    pipeline.run_on(place)
    return pipeline.eval()


def torch_device(name: str, threads: int | None) -> Any:
    """The torch device, if it can be used here."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{name!r} cannot be used: {reason[:200]}", param_hint="--device") from error
    return torch.device(name)
