"""``deeplab-crf demo``: segment and refine the bundled images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from deeplab_crf.cli.network import make_pipeline
from deeplab_crf.cli.options import out_option
from deeplab_crf.core.pairwise import Bilateral, Gaussian
from deeplab_crf.crf.refine_files import RefineSettings, plan_file, refine_file
from deeplab_crf.data.images import overlay, side_by_side, write_image
from deeplab_crf.data.label_files import read_labels
from deeplab_crf.data.rasters import read_image
from deeplab_crf.data.sample import ASTRONAUT, COARSE_LABELS, STREET
from deeplab_crf.models.segment_files import SegmentJob, segment_file

SETTINGS = RefineSettings(
    kernels=(Gaussian(sxy=3, weight=3), Bilateral(sxy=40, srgb=10, weight=8)), iterations=10, confidence=0.6
)
OPTIONS = "--bilateral-sxy 40 --bilateral-srgb 10 --bilateral-weight 8 --iterations 10 --confidence 0.6"


@click.command()
@out_option("Folder for the results.")
def demo(out: Path) -> None:
    """Segment a bundled street image, and refine the coarse labels of a bundled portrait.

    Writes street.png (image, network, network and CRF) and street_labels.png if torch is installed,
    and before.png, after.png, before_after.png and labels.png.
    """
    written = _refine_portrait(out)
    if find_spec("torch") is None:
        click.echo('the street needs torch, which is not installed: pip install "deeplab-crf[torch]"', err=True)
    else:
        written = _segment_street(out) + written
    click.echo(f"wrote {', '.join(written[:-1])} and {written[-1]} to {out}")
    click.echo(f"the last by hand: deeplab-crf refine {ASTRONAUT} {COARSE_LABELS} -o OUT.png --overlay {OPTIONS}")


def _segment_street(folder: Path) -> list[str]:
    job = SegmentJob(STREET, folder / "street_labels.png", figure_out=folder / "street.png")
    segment_file(job, make_pipeline({}))
    return ["street.png", "street_labels.png"]


def _refine_portrait(folder: Path) -> list[str]:
    labels_out = folder / "labels.png"
    refine_file(plan_file(ASTRONAUT, COARSE_LABELS, labels_out), SETTINGS)
    image = read_image(ASTRONAUT)
    before, after = (overlay(image, read_labels(path)) for path in (COARSE_LABELS, labels_out))
    images = {"before.png": before, "after.png": after, "before_after.png": side_by_side([before, after])}
    for name, array in images.items():
        write_image(folder / name, array)
    return [*images, "labels.png"]
