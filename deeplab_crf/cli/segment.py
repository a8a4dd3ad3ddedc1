"""``deeplab-crf segment``: photographs to labels, with a DeepLab network and its CRF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplab_crf.checks import MAX_THREADS
from deeplab_crf.cli.jobs import attempt_all, report_failures
from deeplab_crf.cli.network import NETWORK_OPTIONS, make_pipeline, network_options
from deeplab_crf.cli.options import crf_options, device_option, out_option
from deeplab_crf.segment import plan_images, segment_file, write_legend


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@out_option("Folder for the results.")
@network_options
@click.option("--num-classes", type=click.IntRange(1), help="Default: as many as FILE has.")
@crf_options("Refine with the dense CRF.", "Other settings of the CRF than the network's own")
@device_option
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Default: all cores.")
@click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Also write overlays, side-by-side figures and a legend.",
)
@click.option("--overwrite", is_flag=True, help="Redo what is there; else finished results are skipped.")  # fmt: skip
def segment(images: tuple[Path, ...], out: Path, pictures: bool, overwrite: bool, **options: Any) -> int:
    """Segment each IMAGE, or the images of a folder, into the classes of a trained network; of the bundled one, street scenes, if
    none is given.

    Writes FOLDER/NAME.png (class ids, in the classes' customary colours, else PASCAL VOC's), FOLDER/overlays/NAME.png,
    FOLDER/figures/NAME.png (image, network, CRF side by side) and FOLDER/legend/legend.png. Photographs are turned upright as
    their EXIF says.
    """
    plan = plan_images(images, out, with_pictures=pictures)
    jobs = [job for job in plan if overwrite or not job.finished]
    failures: list[str] = []
    if jobs:
        network = {name: options.pop(name) for name in NETWORK_OPTIONS}
        pipeline = make_pipeline(network, **options)
        if pictures:
            write_legend(out, pipeline)
        failures = attempt_all(jobs, lambda job: segment_file(job, pipeline), "segment", lambda job: (job.image,))
    skipped = len(plan) - len(jobs)
    click.echo(
        f"{len(plan) - len(failures)} of {len(plan)} done"
        + (f", {skipped} of them before (--overwrite redoes them)" if skipped else "")
        + f"; results in {out}"
    )
    return report_failures(failures)
