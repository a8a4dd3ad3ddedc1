"""``deeplab-crf convert``: convert released weights to a file that describes itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from deeplab_crf.cli.jobs import existing_options, may_write
from deeplab_crf.core.presets import PRESETS
from deeplab_crf.models.metadata import CONVENTIONS
from deeplab_crf.models.variants import VARIANTS


@click.command()
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--model",
    type=click.Choice(list(VARIANTS)),
    metavar="NAME",
    help=f"The network, if several have the same layers: {', '.join(VARIANTS)}.",
)
@click.option(
    "--multi-scale/--single-scale",
    default=None,
    help="Run OUT's network at three scales or at one. Default: as released.",
)
@click.option("--half", is_flag=True, help="Store numbers in 16 bits, which halves the file.")
@click.option(
    "--crf",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="The default CRF of OUT's network.",
)
@click.option(
    "--input-convention",
    type=click.Choice(CONVENTIONS),
    metavar="NAME",
    help="Input that IN's first layer was trained on, if IN does not tell: bgr-255 (Caffe: BGR in 0..255 minus the mean), "
    "rgb-255 (the same in RGB) or rgb-1 (torchvision: RGB in 0..1, normalised).",
)
@click.option(
    "--backbone-only",
    is_flag=True,
    help="Keep the backbone of --model alone, for `train` to start from: IN need not have a classifier that fits.",
)
@existing_options
def convert(
    source: Path, out: Path, existing: str | None, half: bool, crf: str | None, backbone_only: bool, **options: Any
) -> None:
    """Convert the weights IN, a .caffemodel or .pth of any known origin, to OUT.safetensors.

    OUT names its network and number of classes, loads without running code, and needs no --model in
    `segment`. Every layer of IN must be accounted for, else nothing is written.
    """
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="OUT")
    if backbone_only and options["model"] is None:
        raise click.BadParameter("it needs --model, the network whose backbone is meant", param_hint="--backbone-only")
    if not may_write([out], existing):
        return
    # Loads torch, which takes seconds: not for --help.
    from deeplab_crf.models import build_model, load_model, load_weights, save_weights

    if backbone_only:
        network = build_model(options["model"], multi_scale=options["multi_scale"])
        report = load_weights(network, source, classifier=False, input_convention=options["input_convention"])
    else:
        name = options.pop("model")
        network, report = load_model(source, name, **options)
    if crf is not None:
        network.usage = replace(network.usage, crf=crf)
    save_weights(network, out, half=half, classifier=not backbone_only)
    click.echo(str(report))
    content = "its backbone" if backbone_only else f"{network.num_classes} classes"
    click.echo(f"wrote {out}: {network.variant.name}, {content}")
