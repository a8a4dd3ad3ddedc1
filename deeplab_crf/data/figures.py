"""Images for people: panels side by side under their titles, and what the colours mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from deeplab_crf.data.images import full_palette, side_by_side

MARGIN, SWATCH, GAP = 6, 14, 8


def legend(names: Mapping[int, str], width: int, colours: tuple[int, ...] | None = None) -> Image.Image:
    """A coloured square and a name for each class id, in as many columns as fit into ``width`` pixels. colours: a palette; None:
    PASCAL VOC's."""
    font = ImageFont.load_default()
    palette = full_palette(colours, max(names, default=0) + 1)
    column = 2 * SWATCH + GAP + int(max((font.getlength(name) for name in names.values()), default=0))
    columns = max(1, min(len(names), (width - MARGIN) // column))
    rows = -(-len(names) // columns)
    image = Image.new("RGB", (max(width, column + MARGIN), rows * (SWATCH + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for place, (number, name) in enumerate(names.items()):
        left, top = MARGIN + place // rows * column, MARGIN + place % rows * (SWATCH + MARGIN)
        colour = palette[3 * number], palette[3 * number + 1], palette[3 * number + 2]
        draw.rectangle((left, top, left + SWATCH, top + SWATCH), fill=colour, outline="black")
        draw.text((left + SWATCH + GAP, top + SWATCH / 2), name, fill="black", font=font, anchor="lm")
    return image


def figure(
    panels: Sequence[tuple[str, Image.Image]], names: Mapping[int, str], colours: tuple[int, ...] | None = None
) -> Image.Image:
    """Images side by side under their titles, and below them the legend of ``names`` in ``colours``, see `legend`."""
    row = side_by_side([_titled(title, image) for title, image in panels])
    below = legend(names, row.width, colours)
    whole = Image.new("RGB", (max(row.width, below.width), row.height + below.height), "white")
    whole.paste(row, (0, 0))
    whole.paste(below, (0, row.height))
    return whole


def _titled(title: str, image: Image.Image) -> Image.Image:
    font = ImageFont.load_default()
    width = max(image.width, int(font.getlength(title)) + 2 * MARGIN)
    whole = Image.new("RGB", (width, image.height + SWATCH + 2 * MARGIN), "white")
    whole.paste(image, (0, SWATCH + 2 * MARGIN))
    ImageDraw.Draw(whole).text((MARGIN, MARGIN + SWATCH / 2), title, fill="black", font=font, anchor="lm")
    return whole
