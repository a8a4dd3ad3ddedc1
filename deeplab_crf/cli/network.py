"""Options that say which network, and the network with its CRF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deeplab_crf.core.image_range import BYTES
from deeplab_crf.core.presets import get_preset
from deeplab_crf.models.bundled import WEIGHTS
from deeplab_crf.models.variants import VARIANTS
from deeplab_crf.runtime.devices import torch_device
from deeplab_crf.runtime.files import digest_file

if TYPE_CHECKING:
    from deeplab_crf.models.pipeline import SegmentationPipeline

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--weights",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Trained weights: .caffemodel, .pth or .safetensors; see docs/models.md. Default: the bundled street scenes.",
    ),
    click.option(
        "--model",
        type=click.Choice(list(VARIANTS)),
        metavar="NAME",
        help=f"The network, where FILE does not say it: {', '.join(VARIANTS)}.",
    ),
    click.option(
        "--multi-scale/--single-scale",
        default=None,
        help="See the image at scales 1, 0.75 and 0.5, or at 1 alone. Default: as released.",
    ),
    click.option(
        "--longer-side",
        type=click.IntRange(1),
        metavar="PIXELS",
        help="Resize images to this for the network; labels have the image's own size. Default: as FILE says, else none.",
    ),
    click.option(
        "--pad-to",
        type=click.IntRange(1),
        metavar="PIXELS",
        help="Pad smaller images to this size. Default: 513, as the released networks saw them, or 1 with a longer side.",
    ),
)
_NOT_RECORDED = ("threads", "workers", "data", "scores", "save_scores")
NETWORK_OPTIONS = ("weights", "model", "multi_scale", "longer_side", "pad_to")


def network_options(command: F) -> F:
    """Adds the options of `NETWORK_OPTIONS`; None where they are not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def recorded_options(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the results of a command with a network, by name, for `ResultFolder`: contents instead of files, and no number
    of threads. Data sets and scores are left out, since they are inputs."""
    preset, device = options.get("preset"), options.get("device")
    return {
        **{name: value for name, value in options.items() if name not in _NOT_RECORDED},
        "command": command,
        "weights": digest_file(options["weights"] or WEIGHTS),
        "preset": None if preset is None else replace(get_preset(preset), name="", description=""),
        "device": None if device is None else device.partition(":")[0],
    }


def make_pipeline(
    options: dict[str, Any],
    *,
    num_classes: int | None = None,
    crf: bool = True,
    preset: str | None = None,
    min_probability: float = 0.0,
    device: str = "cpu",
    threads: int | None = None,
) -> SegmentationPipeline:
    """The network of ``options`` (what is absent of `NETWORK_OPTIONS` is as by default) on the device, and the CRF, in evaluation
    mode. Raises ImportError that says what to install without torch."""
    from deeplab_crf.models import SegmentationPipeline, load_model  # loads torch, which takes seconds: not for --help
    from deeplab_crf.models.pipeline import RELEASED

    place, weights = network_device(device, threads), options.get("weights")
    network, report = load_model(
        weights, options.get("model"), num_classes=num_classes, multi_scale=options.get("multi_scale")
    )
    said = ", ".join(filter(None, (f"{report.format} names", report.taken)))
    where = "the package" if weights is None else f"{weights} ({said})"
    click.echo(f"{network.variant.name}, {network.num_classes} classes, from {where}", err=True)
    pipeline = SegmentationPipeline(
        network,
        (preset or RELEASED) if crf else None,
        min_probability=min_probability,
        longer_side=options.get("longer_side"),
        pad_to=options.get("pad_to"),
        image_range=BYTES,  # that is how files are read
    )
    pipeline.run_on(place)
    return pipeline.eval()


def network_device(name: str, threads: int | None) -> Any:
    """The torch device, if it can be used here."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return torch_device(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
