"""Images, label images with palettes, and overlay images, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deeplab_crf.data.classes import voc_palette
from deeplab_crf.runtime.files import atomic_write

T = TypeVar("T")

# The mean colour of ImageNet's images, blue first, in 0..255: DeepLab sees images without it.
BGR_MEAN = (104.008, 116.669, 122.675)
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000"})


@dataclass(frozen=True)
class LabelImage:
    """ids: (H, W) int64 class ids. palette: R, G, B, R, G, B, ... (0..255) of id 0, 1, ..., or None."""

    ids: NDArray[np.int64]
    palette: tuple[int, ...] | None = None


def open_image(path: Path, check: Callable[[Image.Image], None] = lambda _picture: None) -> Image.Image:
    """Return the decoded image, its file closed.

    Args:
        path: The file.
        check: Is called before anything is decoded, when size and mode are known, and may raise.

    Raises:
        ValueError: The file is missing, broken, no image, or has more pixels than Pillow decodes.
    """
    with attempt(path, lambda: Image.open(path)) as image:
        check(image)
        attempt(path, image.load)
    return image


def attempt(path: Path, action: Callable[[], T]) -> T:
    """Do what Pillow does. Raises ValueError naming the file where it fails."""
    try:
        return action()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a warning with -W error
        raise ValueError(
            f"{path}: cannot be read as an image ({error}). Cut it into tiles; in Python, PIL.Image.MAX_IMAGE_PIXELS is the limit"
        ) from error
    except Exception as error:  # Pillow raises nearly anything for damaged files, KeyError and TypeError among them
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image, or damaged" if unknown else str(error) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as an image ({reason})") from error


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
        image = Image.fromarray(labels.ids.astype(np.uint16))
    else:
        image = Image.fromarray(labels.ids.astype(np.uint8))
        image.putpalette(full_palette(labels.palette, 256 if labels.palette is None else top + 1))
    write_image(path, image)


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, whole or not at all."""
    with atomic_write(path) as stream:
        image.save(stream, format="PNG")


def as_rgb(image: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """``(H, W, 3)`` of an image in 0..255 for viewing: of several bands the first three, of one or two the first as gray."""
    bands = np.asarray(image, dtype=np.float32).reshape(*image.shape[:2], -1)
    return bands[:, :, :3] if bands.shape[2] >= 3 else np.repeat(bands[:, :, :1], 3, axis=2)


def overlay(image: NDArray[np.uint8] | NDArray[np.float32], labels: LabelImage, opacity: float = 0.5) -> Image.Image:
    """Paint labels over an image: classes tinted and outlined, what is black in the palette left as it is.

    image: (H, W) or (H, W, bands) in 0..255. labels: (H, W) ids. opacity: 0 (image only) to 1 (colours only).
    """
    rgb = as_rgb(image)
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


def side_by_side(images: list[Image.Image], gap: int = 8) -> Image.Image:
    """Images in one row on white, ``gap`` pixels apart, tops aligned."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row
