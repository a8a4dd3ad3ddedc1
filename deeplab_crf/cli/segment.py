"""``deeplab-crf segment``: segment images with a DeepLab network and its CRF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplab_crf.cli.jobs import JobRun, existing_options, report_failures
from deeplab_crf.cli.network import NETWORK_OPTIONS, make_pipeline, network_options, recorded_options
from deeplab_crf.cli.options import crf_options, device_option, image_range_option, out_option
from deeplab_crf.data.results import ResultFolder
from deeplab_crf.models.segment_files import legend_job, plan_images, segment_file, write_legend
from deeplab_crf.runtime.checks import MAX_THREADS


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@out_option("Folder for the results.")
@network_options
@image_range_option
@click.option("--num-classes", type=click.IntRange(1), help="Default: as many as FILE has.")
@crf_options("Refine with the dense CRF.", "Other settings of the CRF than the network's own")
@device_option
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Default: all cores.")
@click.option(
    "--figures/--no-figures",
    default=True,
    show_default=True,
    help="Also write overlays, side-by-side figures and a legend.",
)
@existing_options
def segment(images: tuple[Path, ...], out: Path, figures: bool, existing: str | None, **options: Any) -> int:
    """Segment each IMAGE, or the images of a folder, into the classes of a trained network.

    Without --weights, the bundled network for street scenes is used.

    Writes FOLDER/NAME.png (class ids, in the classes' customary colours, else PASCAL VOC's),
    FOLDER/overlays/NAME.png, FOLDER/figures/NAME.png (image, network, CRF side by side) and
    FOLDER/legend/legend.png. Images are rotated and mirrored as their EXIF orientation says, and so
    are the results. Results of the same image with the same weights and settings are skipped;
    others are made again.
    """
    plan = plan_images(images, out, with_figures=figures)
    results = ResultFolder(out, recorded_options("segment", options))
    legends = [legend_job(out)] if figures else []
    if existing is None:
        results.check_known(legends)
    run = JobRun(plan, results, existing)
    legends = [legend for legend in legends if not run.is_done(legend)]
    failures: list[str] = []
    if run.pending or legends:
        network = {name: options.pop(name) for name in NETWORK_OPTIONS}
        image_range = options.pop("image_range")
        pipeline = make_pipeline(network, **options)
        for legend in legends:
            with results.making(legend):
                write_legend(out, pipeline)
        failures = run.run(lambda job: segment_file(job, pipeline, image_range), "segment")
    click.echo(f"{run.summary()}; results in {out}")
    return report_failures(failures)
