"""``deeplab-crf prune``: initialise a pruned variant from VGG-16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplab_crf.cli.jobs import existing_options, may_write
from deeplab_crf.cli.options import data_options, open_data
from deeplab_crf.models.variants import VARIANTS, VGG16

PRUNED = [
    name
    for name, variant in VARIANTS.items()
    if isinstance(variant.backbone, VGG16) and variant.backbone.channels < VGG16().channels
]


@click.command()
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", type=click.Choice(PRUNED), required=True, help="The pruned network.")
@data_options
@click.option("--crops", type=click.IntRange(1), default=46, show_default=True, help="Number of images to use.")
@click.option("--crop", type=click.IntRange(17), default=321, show_default=True, help="Side of the crops, in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@existing_options
def prune(source: Path, out: Path, existing: str | None, **options: Any) -> None:
    """Fit a backbone of half the channels to that of IN, any file with a whole VGG-16.

    This needs images, but neither labels nor training. OUT.safetensors is an input of `train
    --init`. Prints how much of the variance of each layer is lost.
    """
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="OUT")
    if not may_write([out], existing):
        return
    from deeplab_crf.data.transforms import Augmentation  # loads torch, which takes seconds: not for --help
    from deeplab_crf.models import save_weights
    from deeplab_crf.training.pruning import SCALES, prune_weights

    dataset = open_data(options)
    augmentation = Augmentation(options["crop"], SCALES)
    network, errors = prune_weights(
        source, options["model"], dataset, crops=options["crops"], augmentation=augmentation, seed=options["seed"]
    )
    save_weights(network, out, classifier=False)
    shown = ", ".join(f"{100 * error:.2f} %" for error in errors)
    click.echo(f"wrote {out}: the backbone of {options['model']}. Variance of each layer that is lost: {shown}")
