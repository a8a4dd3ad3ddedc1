"""Label images on disk: one channel of class ids, a palette, or colours that stand for classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.data.images import LOSSY_FORMATS, LabelImage, attempt, open_image
from deeplab_crf.data.label_coding import LabelCoding
from deeplab_crf.data.label_colors import COLOUR_TABLES, ColorTable

PLAIN = LabelCoding()
Size: TypeAlias = tuple[int, int]  # rows and columns

# Pillow spreads gray values of fewer bits than 8 or 16 over the whole range; in a label image they are ids.
_LARGEST_OF_MODE = {"L;2": 3, "L;4": 15}


def read_labels(
    path: Path, coding: LabelCoding = PLAIN, check_size: Callable[[Size], None] = lambda _size: None
) -> LabelImage:
    """Read a label image.

    Args:
        path: One channel of class ids (1, 2, 4, 8, 16 or 32 bits), a palette image, whose palette is kept, or with
            ``coding.colors`` an image whose colours, or those of its palette, stand for classes.
        coding: How values become ids.
        check_size: Is called with (rows, columns) before any pixel is decoded, and may raise.

    Raises:
        ValueError: The file is no image or has several pages, is in a format that changes values (JPEG), holds colours and
            there is no table or a colour that the table lacks, or is not opaque.
    """
    largest: int | None = None

    def check(image: Image.Image) -> None:
        nonlocal largest
        if image.format in LOSSY_FORMATS:
            raise ValueError(
                f"{path}: {image.format} changes pixel values, so it cannot carry class ids; save labels as PNG"
            )
        pages = attempt(path, lambda: getattr(image, "n_frames", 1))
        if pages > 1:
            raise ValueError(f"{path}: labels must be one image; this file has {pages} pages")
        check_size((image.height, image.width))
        largest = _largest_value(image)

    image = open_image(path, check)
    if coding.colors is not None:
        return LabelImage(coding.apply(_colour_ids(image, coding.colors, path)), coding.palette)
    if image.mode == "P":
        palette = image.getpalette("RGB")
        return LabelImage(coding.apply(np.asarray(image)), tuple(palette) if palette else None)
    if image.mode == "LA":
        _check_opaque(image, path)
        image = image.getchannel("L")
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        values = np.asarray(image)
        if largest is not None:
            top = 255 if largest < 256 else 65535
            values = (values.astype(np.int64) * largest + top // 2) // top
        return LabelImage(coding.apply(values))
    raise ValueError(
        f"{path}: labels must be one channel of class ids or a palette image; this one has mode {image.mode}. "
        f"Convert its colours to ids with --label-colors (a file, {', '.join(COLOUR_TABLES)}), or save with a palette"
    )


def _largest_value(image: Image.Image) -> int | None:
    """The gray value that Pillow will have spread to the largest of 8 or 16 bits; None where it keeps values. For images that
    are not decoded yet: it stands in the arguments of the decoder."""
    tiles: Any = getattr(image, "tile", None)
    codec, arguments = (tiles[0][0], tiles[0][3]) if tiles else ("", None)
    words = arguments if isinstance(arguments, tuple) else (arguments,)
    if codec.startswith("ppm"):
        return int(words[-1])
    return _LARGEST_OF_MODE.get(words[0])


def _colour_ids(image: Image.Image, colors: ColorTable, path: Path) -> NDArray[np.int64]:
    """The ids of a image's colours. Raises ValueError as `read_labels` does."""
    if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
        raise ValueError(
            f"{path}: has one channel (mode {image.mode}), so its values are ids, not colours; leave --label-colors out"
        )
    if image.mode not in ("P", "PA", "RGB", "RGBA"):
        raise ValueError(
            f"{path}: label colours must be RGB or a palette; this image has mode {image.mode}. Save it as PNG"
        )
    _check_opaque(image, path)
    return colors.ids(np.asarray(image.convert("RGB")), path)


def _check_opaque(image: Image.Image, path: Path) -> None:
    """Raises ValueError for a label image with transparent pixels: what they stand for is not known."""
    if "A" not in image.getbands():
        return
    alpha = np.asarray(image.getchannel("A"))
    if int(alpha.min(initial=255)) < 255:
        row, column = (int(i) for i in np.argwhere(alpha < 255)[0])
        raise ValueError(
            f"{path}: labels must be opaque; the pixel at row {row}, column {column} is transparent. Save the labels "
            "without an alpha channel"
        )
