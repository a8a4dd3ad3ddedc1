"""``deeplab-crf convert``: released weights to a file that says what it is."""

from __future__ import annotations

from pathlib import Path

import click

from deeplab_crf.models.variants import VARIANTS


@click.command()
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--model",
    type=click.Choice(list(VARIANTS)),
    metavar="NAME",
    help=f"The network, where several have the same layers: {', '.join(VARIANTS)}.",
)
@click.option(
    "--multi-scale/--single-scale",
    default=None,
    help="Whether OUT's network sees images at three scales. Default: as released.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is there.")  # fmt: skip
def convert(source: Path, out: Path, model: str | None, multi_scale: bool | None, overwrite: bool) -> None:
    """Convert the weights IN, a .caffemodel or .pth of any known origin, to OUT.safetensors.

    OUT says which network and how many classes it is for, loads without running any code, and is what `segment` takes without
    --model. Every layer of IN is accounted for, or nothing is written.
    """
    if out.exists() and not overwrite:
        raise click.BadParameter(f"{out} is there already; --overwrite replaces it", param_hint="OUT")
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="OUT")
    from deeplab_crf.models import load_model, save_weights  # loads torch, which takes seconds: not for --help

    network, report = load_model(source, model, multi_scale=multi_scale)
    save_weights(network, out)
    click.echo(str(report))
    click.echo(f"wrote {out}: {network.variant.name}, {network.num_classes} classes")
