"""Options that select a network, and the pipeline that they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deeplab_crf.core.image_range import BYTES
from deeplab_crf.core.presets import get_preset
from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.models.bundled import WEIGHTS
from deeplab_crf.models.variants import VARIANTS
from deeplab_crf.runtime.devices import torch_device
from deeplab_crf.runtime.files import digest_file

if TYPE_CHECKING:
    from deeplab_crf.models.deeplab import DeepLab
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
        help=f"The network, if FILE does not name it: {', '.join(VARIANTS)}.",
    ),
    click.option(
        "--multi-scale/--single-scale",
        default=None,
        help="Run at scales 1, 0.75 and 0.5, or at 1 only. Default: as released.",
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
        help="Pad smaller images to this size. Default: 513, as for the released networks, or 1 with a longer side.",
    ),
)
_NOT_RECORDED = ("threads", "workers", "data", "scores", "save_scores")
NETWORK_OPTIONS = ("weights", "model", "multi_scale", "longer_side", "pad_to")


def network_options(command: F) -> F:
    """Add `NETWORK_OPTIONS`; options that are not given are None."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def recorded_options(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that change the results of a command with a network, for `ResultFolder`.

    Files are replaced by their content; numbers of threads, data sets and scores (which are inputs)
    are left out.
    """
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
    """Load the network of ``options`` and its CRF, in evaluation mode.

    Args:
        options: `NETWORK_OPTIONS` by name; absent ones have their defaults.
        num_classes: The expected number of classes.
        crf: Whether to add a CRF.
        preset: The CRF's preset; None: the network's own.
        min_probability: See `SegmentationPipeline`.
        device: The device's name.
        threads: torch's threads.

    Raises:
        ImportError: torch is not installed; the error says what to install.
    """
    from deeplab_crf.models import SegmentationPipeline, load_model  # loads torch, which takes seconds: not for --help
    from deeplab_crf.models.pipeline import RELEASED

    target, weights = network_device(device, threads), options.get("weights")
    network, report = load_model(
        weights, options.get("model"), num_classes=num_classes, multi_scale=options.get("multi_scale")
    )
    said = ", ".join(filter(None, (f"{report.format} names", report.taken)))
    origin = "the package" if weights is None else f"{weights} ({said})"
    click.echo(f"{network.variant.name}, {network.num_classes} classes, from {origin}", err=True)
    pipeline = SegmentationPipeline(
        network,
        (preset or RELEASED) if crf else None,
        min_probability=min_probability,
        longer_side=options.get("longer_side"),
        pad_to=options.get("pad_to"),
        image_range=BYTES,  # that is how files are read
    )
    pipeline.run_on(target)
    return pipeline.eval()


def check_classes(network: DeepLab, weights: Path, dataset: SegmentationFolder) -> None:
    """Raise ValueError if the network does not have the classes of the data set."""
    count = len(dataset.classes)
    if network.num_classes != count:
        raise ValueError(
            f"{weights}: the network must have the data set's {count} classes; got {network.num_classes}. "
            "Name one of that many with --weights"
        )


@contextmanager
def needs_torch(command: str, extra: str = "torch") -> Iterator[None]:
    """Say what to install if an import in the block fails for lack of torch."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f'{command} needs torch, which is not installed: pip install "deeplab-crf[{extra}]"'
        ) from error


def network_device(name: str, threads: int | None) -> Any:
    """Return the torch device; raise BadParameter if it cannot be used."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return torch_device(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
