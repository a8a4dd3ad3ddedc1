"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from deeplab_crf.core.image_range import ImageRange, check_image_range
from deeplab_crf.core.presets import PRESETS, get_preset
from deeplab_crf.data.cams import DICT_BACKGROUND, KEYED_BACKGROUND, parse_background
from deeplab_crf.data.datasets import DATASETS, SegmentationFolder, held_back, open_dataset
from deeplab_crf.data.label_coding import LabelCoding, make_coding
from deeplab_crf.data.label_colors import COLOUR_TABLES

Decorator = Callable[[Any], Any]

PRESET_HELP = f"a file that deeplab-crf tune wrote, or one of {', '.join(PRESETS)}"


def known_preset(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Validate a preset's name or file and return it unchanged."""
    try:
        if value is not None:
            get_preset(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


class DatasetName(click.ParamType):  # type: ignore[type-arg]  # generic in newer click alone
    """The arguments of `open_dataset` as KIND:ROOT:SPLIT. ROOT may contain colons."""

    name = "KIND:ROOT:SPLIT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path, str]:
        """Split the text into kind, root and split."""
        kind, colon, rest = str(value).partition(":")
        root, second, split = rest.rpartition(":")
        if kind not in DATASETS or not (colon and second and root and split):
            self.fail(
                f"{value!r} must be KIND:ROOT:SPLIT, such as camvid:data/camvid:val; KIND is {', '.join(DATASETS)}"
            )
        return kind, Path(root), split


def _label_map(_context: click.Context, _option: click.Parameter, value: str) -> Mapping[int, int]:
    try:
        return make_coding(value).replaced
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _image_range(_context: click.Context, _option: click.Parameter, value: str | None) -> ImageRange | None:
    if value is None:
        return None
    try:
        return check_image_range([float(word) for word in value.split(",")])
    except ValueError:
        raise click.BadParameter(
            f"{value!r} must be two numbers with a comma, LOW below HIGH, such as 0,65535"
        ) from None


image_range_option: Decorator = click.option(
    "--image-range",
    callback=_image_range,
    metavar="LOW,HIGH",
    help="Values of black and white in images of more than 8 bits, such as 0,4095 or 0,1. Default: from dtype and values, if "
    "they tell.",
)

LABEL_OPTIONS = (
    click.option("--map-labels", callback=_label_map, default="", metavar="OLD=NEW,...",
                 help="Replace ids in label files, such as 255=1 or 0=255,1..20=0..19."),
    click.option("--label-colors", default="", metavar=f"FILE|{'|'.join(COLOUR_TABLES)}",
                 help="The table of label images that are coded by colour."),
)  # fmt: skip


def _cam_background(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            parse_background(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


cam_option: Decorator = click.option(
    "--cam-background",
    callback=_cam_background,
    metavar="constant:T|power:A",
    help="Score of the background beside class activation maps: T, or (1 - their maximum) to the power A. Default: "
    f"{KEYED_BACKGROUND} for files with keys (IRNet), {DICT_BACKGROUND} for maps by class (AffinityNet, SEAM).",
)


def label_coding(options: dict[str, Any]) -> LabelCoding:
    """Remove ``LABEL_OPTIONS`` from a command's options and return the coding they describe."""
    try:
        return make_coding(options.pop("map_labels"), options.pop("label_colors"))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--label-colors") from error


def data_options(command: Any) -> Any:
    """Add ``--data`` and the options of label images; see `open_data`."""
    options = (
        click.option("--data", required=True, type=DatasetName(), help=f"The data set; KIND is {', '.join(DATASETS)}."),
        *LABEL_OPTIONS,
    )
    for option in reversed(options):
        command = option(command)
    return command


def held_back_options(command: Any) -> Any:
    """Add ``--val-fraction`` and ``--val-seed`` for `open_data`."""
    seed = click.option(
        "--val-seed", type=click.IntRange(0), help="The training's val-seed. [with --val-fraction; default: 0]"
    )
    fraction = click.option(
        "--val-fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        help="Use only the images that train --val-fraction SHARE holds back.",
    )
    return fraction(seed(command))


def open_data(options: dict[str, Any]) -> SegmentationFolder:
    """Open the data set of `data_options`, or the part that `held_back_options` select.

    The options of label images are removed from ``options``.
    """
    kind, root, split = options["data"]
    dataset = open_dataset(kind, root, split, label_coding(options))
    fraction, seed = options.get("val_fraction"), options.get("val_seed")
    if fraction is None:
        if seed is not None:
            raise click.UsageError("--val-seed is of use with --val-fraction alone")
        return dataset
    return dataset.only(held_back([item.name for item in dataset.items], fraction, seed or 0))


def out_option(text: str, *, required: bool = True) -> Decorator:
    """Make ``-o``, ``--out``, a folder."""
    return click.option(
        "-o",
        "--out",
        required=required,
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help=text,
    )


def crf_options(purpose: str, preset: str) -> Decorator:
    """Make ``--crf/--no-crf``, ``--preset`` and ``--min-probability``.

    Args:
        purpose: The help text of ``--crf``.
        preset: The beginning of the help text of ``--preset``.
    """
    options = (
        click.option("--crf/--no-crf", default=True, show_default=True, help=purpose),
        click.option("--preset", callback=known_preset, metavar="NAME|FILE", help=f"{preset}: {PRESET_HELP}."),
        click.option(
            "--min-probability",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Raise probabilities to it before the CRF; re-implementations on pydensecrf use 1e-5.",
        ),
    )

    def decorated(command: Any) -> Any:
        @wraps(command)
        def checked(*arguments: Any, **given: Any) -> Any:
            for name in ("preset", "min_probability"):
                if given[name] and not given["crf"]:
                    raise click.UsageError(
                        f"--{name.replace('_', '-')} is of no use with --no-crf; leave one of them out"
                    )
            return command(*arguments, **given)

        for option in reversed(options):
            checked = option(checked)
        return checked

    return decorated


device_option: Decorator = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Device: cpu, cuda, cuda:1, mps. The CRF runs on CUDA in builds with CUDA, else on the CPU.",
)
