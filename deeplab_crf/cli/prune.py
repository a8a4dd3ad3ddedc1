"""``deeplab-crf narrow``: pretrained VGG-16 weights to an initialisation of a narrow variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplab_crf.cli.jobs import existing_options, may_write
from deeplab_crf.cli.options import data_options, open_data
from deeplab_crf.models.variants import VARIANTS, VGG16

NARROW = [
    name
    for name, variant in VARIANTS.items()
    if isinstance(variant.backbone, VGG16) and variant.backbone.channels < VGG16().channels
]


@click.command()
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", type=click.Choice(NARROW), required=True, help="The narrow network.")
@data_options
@click.option("--crops", type=click.IntRange(1), default=46, show_default=True, help="How many photographs to look at.")
@click.option("--crop", type=click.IntRange(17), default=321, show_default=True, help="Side of the crops, in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@existing_options
def narrow(source: Path, out: Path, existing: str | None, **options: Any) -> None:
    """Fit a trunk of half the channels to that of IN, any file with a whole VGG-16, on photographs; no labels, no training.

    OUT.safetensors is what `train --init` takes. Prints how far each layer is off.
    """
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="OUT")
    if not may_write([out], existing):
        return
    from deeplab_crf.data.transforms import Augmentation  # loads torch, which takes seconds: not for --help
    from deeplab_crf.models import save_weights
    from deeplab_crf.training.pruning import SCALES, narrow_weights

    photographs = open_data(options)
    augmentation = Augmentation(options["crop"], SCALES)
    network, errors = narrow_weights(
        source, options["model"], photographs, crops=options["crops"], augmentation=augmentation, seed=options["seed"]
    )
    save_weights(network, out, classifier=False)
    shown = ", ".join(f"{100 * error:.2f} %" for error in errors)
    click.echo(f"wrote {out}: the trunk of {options['model']}. Variance of each layer that is lost: {shown}")
