"""``deeplab-crf demo``: the bundled photograph, before and after."""

from __future__ import annotations

from pathlib import Path

import click

from deeplab_crf.data.images import overlay, read_image, read_labels, side_by_side, write_picture
from deeplab_crf.data.sample import COARSE_LABELS, PHOTOGRAPH
from deeplab_crf.kernels import Bilateral, Gaussian
from deeplab_crf.refine import RefineSettings, plan_file, refine_file

SETTINGS = RefineSettings(
    kernels=(Gaussian(sxy=3, weight=3), Bilateral(sxy=40, srgb=10, weight=8)), iterations=10, confidence=0.6
)
OPTIONS = "--bilateral-sxy 40 --bilateral-srgb 10 --bilateral-weight 8 --iterations 10 --confidence 0.6"


@click.command()
@click.option(
    "-o",
    "--out",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the pictures.",
)
def demo(folder: Path) -> None:
    """Refine the coarse labels of a bundled photograph: before.png, after.png, before_after.png, labels.png."""
    labels_out = folder / "labels.png"
    refine_file(plan_file(PHOTOGRAPH, COARSE_LABELS, labels_out), SETTINGS)
    image = read_image(PHOTOGRAPH)
    before, after = (overlay(image, read_labels(path)) for path in (COARSE_LABELS, labels_out))
    pictures = {"before.png": before, "after.png": after, "before_after.png": side_by_side([before, after])}
    for name, picture in pictures.items():
        write_picture(folder / name, picture)
    click.echo(f"wrote {', '.join(pictures)} and labels.png to {folder}")
    click.echo(f"the same by hand: deeplab-crf refine {PHOTOGRAPH} {COARSE_LABELS} -o OUT.png --overlay {OPTIONS}")
