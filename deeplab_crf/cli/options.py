"""Option values that several commands take."""

from __future__ import annotations

import click

from deeplab_crf.presets import PRESETS, get_preset

PRESET_HELP = f"a file that deeplab-crf tune wrote, or one of {', '.join(PRESETS)}"


def known_preset(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """The name of a published preset, or of a preset file, as it came: after a look that it can be used."""
    try:
        if value is not None:
            get_preset(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value
