"""Photographs, label images with palettes, and overlay pictures, as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplab_crf.data.classes import voc_palette
from deeplab_crf.data.files import atomic_write
from deeplab_crf.data.label_coding import LabelCoding
from deeplab_crf.data.label_colors import COLOUR_TABLES, ColorTable

# The mean colour of ImageNet's photographs, blue first, in 0..255: DeepLab sees images without it.
BGR_MEAN = (104.008, 116.669, 122.675)
PLAIN = LabelCoding()
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000"})


@dataclass(frozen=True)
class LabelImage:
    """ids: (H, W) int64 class ids. palette: R, G, B, R, G, B, ... (0..255) of id 0, 1, ..., or None."""

    ids: NDArray[np.int64]
    palette: tuple[int, ...] | None = None


def _open(path: Path) -> Image.Image:
    """The decoded picture, its file closed. Raises ValueError naming the file if missing, broken or no picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a picture, or damaged" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{path}: cannot be read as an image ({reason})") from error
    return picture


def read_image(path: Path, *, turned: bool = False) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Read a photograph: (H, W, 3) uint8, or (H, W) where it is gray; see `picture_array`.

    turned: turn it upright where its EXIF says that it lies on its side. False by default, as in Pillow, torchvision and the label
    images made with them.
    """
    picture = _open(path)
    return picture_array(upright(picture) if turned else picture)


def upright(picture: Image.Image) -> Image.Image:
    """The picture as viewers show it, turned and mirrored as its EXIF says."""
    return ImageOps.exif_transpose(picture)


def picture_array(picture: Image.Image) -> NDArray[np.uint8] | NDArray[np.float32]:
    """(H, W, 3) uint8 in RGB, or (H, W) where the picture is gray, from any of Pillow's modes.

    Transparency is dropped. 16-bit gray becomes float32 scaled to 0..255, so that colour widths mean the same for all.
    """
    if picture.mode.startswith("I"):
        return (np.asarray(picture, dtype=np.float32) / np.float32(257)).clip(0, 255)
    gray = picture.mode in ("1", "L", "LA", "La")
    return np.array(picture.convert("L" if gray else "RGB"), dtype=np.uint8)


def read_labels(path: Path, coding: LabelCoding = PLAIN) -> LabelImage:
    """Read a label image.

    Args:
        path: One channel of class ids (1, 2, 4, 8, 16 or 32 bits), a palette image, whose palette is kept, or with
            ``coding.colors`` an image whose colours, or those of its palette, stand for classes.
        coding: How values become ids.

    Raises:
        ValueError: The file is no image, is in a format that changes values (JPEG), holds colours and there is no table
            or a colour that the table lacks, or is not opaque.
    """
    picture = _open(path)
    if picture.format in LOSSY_FORMATS:
        raise ValueError(
            f"{path}: {picture.format} changes pixel values, so it cannot carry class ids; save labels as PNG"
        )
    if coding.colors is not None:
        return LabelImage(coding.apply(_colour_ids(picture, coding.colors, path)), coding.palette)
    if picture.mode == "P":
        palette = picture.getpalette("RGB")
        return LabelImage(coding.apply(np.asarray(picture)), tuple(palette) if palette else None)
    if picture.mode == "LA":
        _check_opaque(picture, path)
        picture = picture.getchannel("L")
    if picture.mode in ("1", "L") or picture.mode.startswith("I"):
        return LabelImage(coding.apply(np.asarray(picture)))
    raise ValueError(
        f"{path}: labels must be one channel of class ids or a palette image; this one has mode {picture.mode}. "
        f"Convert its colours to ids with --label-colors (a file, {', '.join(COLOUR_TABLES)}), or save with a palette"
    )


def _colour_ids(picture: Image.Image, colors: ColorTable, path: Path) -> NDArray[np.int64]:
    """The ids of a picture's colours. Raises ValueError as `read_labels` does."""
    if picture.mode == "1" or picture.mode[0] in "LIF":
        raise ValueError(
            f"{path}: has one channel (mode {picture.mode}), so its values are ids, not colours; leave --label-colors out"
        )
    if picture.mode not in ("P", "RGB"):
        _check_opaque(picture, path)
    return colors.ids(np.asarray(picture.convert("RGB")), path)


def _check_opaque(picture: Image.Image, path: Path) -> None:
    """Raises ValueError for a label image with transparent pixels: what they stand for is not known."""
    if "A" not in picture.getbands():
        return
    alpha = np.asarray(picture.getchannel("A"))
    if int(alpha.min(initial=255)) < 255:
        row, column = (int(i) for i in np.argwhere(alpha < 255)[0])
        raise ValueError(
            f"{path}: labels must be opaque; the pixel at row {row}, column {column} is transparent. Save the labels "
            "without an alpha channel"
        )


def full_palette(palette: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    """``palette``, and VOC colours for the ids below ``count`` that it lacks."""
    given = palette or ()
    return given + voc_palette(count)[len(given) :]


def write_labels(path: Path, labels: LabelImage) -> None:
    """Write class ids as PNG, whole or not at all: with a palette (VOC colours if none came), 16 bits above id 255."""
    top = int(labels.ids.max(initial=0))
    if int(labels.ids.min(initial=0)) < 0 or top > 65535:
        raise ValueError(f"{path}: class ids must lie in 0..65535 to be kept in a PNG; got {labels.ids.min()}..{top}")
    if top > 255:
        picture = Image.fromarray(labels.ids.astype(np.uint16))
    else:
        picture = Image.fromarray(labels.ids.astype(np.uint8))
        picture.putpalette(full_palette(labels.palette, 256 if labels.palette is None else top + 1))
    write_picture(path, picture)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all."""
    with atomic_write(path) as stream:
        picture.save(stream, format="PNG")


def overlay(image: NDArray[np.uint8] | NDArray[np.float32], labels: LabelImage, opacity: float = 0.5) -> Image.Image:
    """Paint labels over a photograph: classes tinted and outlined, what is black in the palette left as it is.

    image: (H, W) or (H, W, 3) in 0..255. labels: (H, W) ids. opacity: 0 (photograph only) to 1 (colours only).
    """
    rgb = np.asarray(image, dtype=np.float32)
    if rgb.ndim == 2:
        rgb = np.repeat(rgb[:, :, None], 3, axis=2)
    if rgb.shape[:2] != labels.ids.shape:
        raise ValueError(f"labels must have the image's size {rgb.shape[:2]}; got {labels.ids.shape}")
    table = np.array(full_palette(labels.palette, int(labels.ids.max(initial=0)) + 1), dtype=np.float32).reshape(-1, 3)
    colours = table[labels.ids]
    tint = np.where(_borders(labels.ids), np.float32(1), np.float32(opacity))
    share = (tint * colours.any(axis=2))[:, :, None]
    return Image.fromarray((rgb * (1 - share) + colours * share + np.float32(0.5)).clip(0, 255).astype(np.uint8))


def _borders(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(H, W): pixels with a neighbour (left, right, above, below) of another id."""
    borders = np.zeros(ids.shape, dtype=np.bool_)
    across, down = ids[:, :-1] != ids[:, 1:], ids[:-1, :] != ids[1:, :]
    borders[:, :-1] |= across
    borders[:, 1:] |= across
    borders[:-1, :] |= down
    borders[1:, :] |= down
    return borders


def side_by_side(pictures: list[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures in one row on white, ``gap`` pixels apart, tops aligned."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row
