"""Pixels of image files as they are stored, without losing bits: 8 and 16 bits, floats, several bands, and their orientation."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deeplab_crf.core.image_range import BYTES, OPTION, ImageRange, is_whole, map_to_bytes, resolve_image_range
from deeplab_crf.data.images import attempt

Pixels = NDArray[Any]

_ORIENTATION = 0x0112
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLUMNS, _ROWS, _SUBFILE, _BITS, _SAMPLES, _EXTRA_SAMPLES, _FORMAT = 256, 257, 254, 258, 277, 338, 339
_IS_MASK = 4
_MOST_PAGES = 1000
_ALPHA = (1, 2)  # associated and unassociated

# How the stored pixels are turned for each orientation of EXIF.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
_BACK = {6: 8, 8: 6}  # the orientation whose turn undoes that of another; the others undo themselves


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image file. pixels: ``(H, W)`` or ``(H, W, channels)`` in the dtype and order of the file, without transparency.
    orientation: EXIF's, 1 (upright) to 8. image_range: the values of black and white where the file says them."""

    path: Path
    pixels: Pixels
    orientation: int = 1
    image_range: ImageRange | None = None

    def size(self, upright: bool) -> tuple[int, int]:
        """Height and width, upright or as stored."""
        height, width = self.pixels.shape[:2]
        return (width, height) if upright and self.orientation > 4 else (height, width)

    def is_upright_for(self, fits: Callable[[tuple[int, int]], bool], partner: Path, remedy: str) -> bool:
        """Whether labels or scores belong to the upright pixels, instead of the pixels as stored.

        fits: tells whether they belong to an image of a size. partner: their file, and remedy: what to do, for the error.
        Raises ValueError where both sizes fit, and EXIF turns or mirrors the image: tools differ in whether they heed it.
        """
        if self.orientation == 1:
            return True
        upright, stored = (fits(self.size(way)) for way in (True, False))
        if upright and stored:
            raise ValueError(
                f"{partner}: fits {self.path} as it is stored and as its EXIF turns it (orientation {self.orientation}), so it "
                f"is not known which of them it was made from. {remedy}"
            )
        return upright or not stored

    def values(
        self, image_range: ImageRange | None = None, *, upright: bool = True
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The image in 0..255, the units of the colour widths: uint8 where it is stored so, else float32.

        image_range: the values of black and white; None: as the file, its dtype or its values tell. upright: turned and mirrored as
        EXIF says. Raises ValueError naming the file where the range is not clear.
        """
        turn = _TURNS.get(self.orientation) if upright else None
        pixels = self.pixels if turn is None else np.ascontiguousarray(turn(self.pixels))
        units = resolve_image_range(
            image_range or self.image_range,
            pixels.dtype,
            lambda: (float(pixels.min()), float(pixels.max())),
            whole=lambda: is_whole(pixels),
            name=f"{self.path}: the image",
            remedy=OPTION,
        )
        if pixels.dtype == np.uint8 and units == BYTES:
            return pixels
        mapped: NDArray[np.float32] = map_to_bytes(pixels.astype(np.float32), units)
        if not np.isfinite(mapped).all():
            raise ValueError(f"{self.path}: the image must be finite; got NaN, inf or values beyond float32")
        return mapped


def read_image(path: Path, image_range: ImageRange | None = None) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Read an image upright, as its EXIF says, in 0..255: uint8 or float32 ``(H, W)``, ``(H, W, 3)``, or ``(H, W, bands)``.

    image_range: the values of black and white; None: as the file, its dtype or its values tell. Raises ValueError that names the
    file, where the range is not clear too.
    """
    return read_stored_image(path).values(image_range)


def read_stored_image(path: Path) -> StoredImage:
    """Read an image file as it is stored. Raises ValueError naming the file if it is missing, broken or no image, and where its
    numbers cannot be read without loss."""
    try:
        image = attempt(path, lambda: Image.open(path))
    except ValueError as error:
        if isinstance(error.__cause__, UnidentifiedImageError) and _is_tiff(path):  # of bands that Pillow does not know
            return _read_tiff(path)
        raise
    with image:
        _check_pages(image, path)
        return _read_tiff(path) if _needs_tifffile(image) else _decode(image, path)


def read_header(path: Path) -> StoredImage | None:
    """Size and orientation of an image file without its pixels, which are zeros here. None where only decoding tells them."""
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
            if image.format == "TIFF":  # Pillow may give the size of the turned image
                size = tuple(_tiff_values(image, _ROWS, _COLUMNS))  # type: ignore[assignment]
            return StoredImage(path, np.broadcast_to(np.uint8(0), size), _orientation(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # whoever decodes it says what is wrong
        return None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 where there is none, or none that is known, or where EXIF is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return 1
    return orientation if orientation in _TURNS else 1


def _decode(image: Image.Image, path: Path) -> StoredImage:
    """The pixels of an open, not yet decoded image."""
    raw_mode = _codec_arguments(image) if image.format == "PNG" else None
    maximum = _maximum_of_pgm(image)
    turned = _orientation(image) if image.format == "TIFF" else 1  # Pillow turns TIFF, and no other format
    if raw_mode == "LA;16B":
        raise ValueError(
            f"{path}: gray with alpha in 16 bits is not read without loss; save it without alpha, or in 8 bits"
        )
    attempt(path, image.load)
    pixels = attempt(path, lambda: pixels_of(image))
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        pixels = pixels.astype(np.uint16) * np.uint16(256) + _low_bytes(path)
    if image.format == "TIFF" and pixels.dtype == np.int32 and _tiff_values(image, _BITS, _FORMAT) == [32, 1]:
        pixels = pixels.view(np.uint32)  # Pillow has no unsigned integers of 32 bits
    if maximum is not None:  # Pillow scales them to 65535
        pixels = np.rint(pixels * (maximum / 65535)).astype(np.uint16)
    own_range = None if maximum is None else (0.0, float(maximum))
    if image.format == "TIFF":
        back = _TURNS.get(_BACK.get(turned, turned))
        return StoredImage(path, pixels if back is None else np.ascontiguousarray(back(pixels)), turned, own_range)
    return StoredImage(path, pixels, _orientation(image), own_range)


def _codec_arguments(image: Image.Image) -> Any:
    """What the decoder of an open, not yet decoded image is told: of a PNG the name of its pixel format."""
    tiles: Any = getattr(image, "tile", None)
    return tiles[0][3] if tiles else None


def _maximum_of_pgm(image: Image.Image) -> int | None:
    """The value of white of a gray map of more than 8 bits, which says it."""
    if image.format != "PPM" or image.mode != "I":
        return None
    arguments = _codec_arguments(image)
    return int(arguments[1]) if isinstance(arguments, tuple) else 65535


def _low_bytes(path: Path) -> NDArray[np.uint8]:
    """``(H, W, 3)`` of a PNG in colour and 16 bits, of which Pillow keeps the high bytes alone: tell it that the low bytes come
    first."""
    with Image.open(path) as image:
        undecoded: Any = image
        undecoded.tile = [(*tile[:3], tile[3].replace("16B", "16L")) for tile in undecoded.tile]
        attempt(path, image.load)
        return np.asarray(image.convert("RGB"))


def pixels_of(image: Image.Image) -> Pixels:
    """``(H, W)`` or ``(H, W, 3)`` of any of Pillow's modes: gray in the image's own dtype, everything else as uint8 in RGB.
    Transparency is dropped."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return np.array(image)
    gray = image.mode in ("1", "L", "LA", "La")
    return np.array(image.convert("L" if gray else "RGB"), dtype=np.uint8)


def _check_pages(image: Image.Image, path: Path) -> None:
    """Raises ValueError for a TIFF with several pages of the same size: reading the first alone would lose bands or slices."""
    if image.format != "TIFF":
        return
    size = image.size
    count = attempt(path, lambda: _pages_alike(image))
    if count > 1:
        raise _several_pages(path, count, size[1], size[0])


def _pages_alike(image: Image.Image) -> int:
    """How many pages of a TIFF have the size of the first one and are no masks."""
    size, count = image.size, 1
    for page in range(1, getattr(image, "n_frames", 1)):
        image.seek(page)
        count += image.size == size and not _tiff_values(image, _SUBFILE)[0] & _IS_MASK
    image.seek(0)
    return count


def _several_pages(path: Path, count: int, height: int, width: int) -> ValueError:
    return ValueError(
        f"{path}: holds {count} pages of {height} x {width}; an image must be one page, its channels the bands of that page"
    )


def _needs_tifffile(image: Image.Image) -> bool:
    """Whether a TIFF has bands that Pillow drops, or more bits than it keeps."""
    if image.format != "TIFF":
        return False
    (samples,) = _tiff_values(image, _SAMPLES)
    extra = image.tag_v2.get(_EXTRA_SAMPLES, ())  # type: ignore[attr-defined]
    extra = extra if isinstance(extra, tuple) else (extra,)
    return samples > 1 and (_tiff_values(image, _BITS)[0] > 8 or any(kind not in _ALPHA for kind in extra))


def _tiff_values(image: Image.Image, *tags: int) -> list[int]:
    """The first value of each tag of a TIFF; 1, the specification's default of most, where there is no whole number."""
    values = (image.tag_v2.get(tag, 1) for tag in tags)  # type: ignore[attr-defined]
    firsts = (value[0] if isinstance(value, tuple) and value else value for value in values)
    return [first if isinstance(first, int) else 1 for first in firsts]


def _is_tiff(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) in _TIFF_STARTS


def _read_tiff(path: Path) -> StoredImage:
    """The first page of a TIFF with any number of bands, by tifffile."""
    try:
        import tifffile
    except ModuleNotFoundError:
        raise ValueError(
            f'{path}: a TIFF with several bands, or colour in more than 8 bits, needs tifffile: pip install "deeplab-crf[tiff]"'
        ) from None
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            pixel_count = page.imagewidth * page.imagelength
            if Image.MAX_IMAGE_PIXELS is not None and pixel_count > 2 * Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it has {pixel_count} pixels, more than {2 * Image.MAX_IMAGE_PIXELS}")
            pages = islice(file.pages, _MOST_PAGES)  # those of a damaged file may go round in circles
            kinds = (
                (other.shape, getattr(other, "subfiletype", 0)) for other in pages
            )  # pages, or frames like the first
            alike = sum(shape == page.shape and not kind & _IS_MASK for shape, kind in kinds)
            pixels, axes = page.asarray(), page.axes
            alphas = sum(kind in _ALPHA for kind in page.extrasamples)
            orientation = page.tags.valueof(274, 1)
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{path}: cannot be read as a TIFF ({error})") from error
    if alike > 1:
        raise _several_pages(path, alike, page.imagelength, page.imagewidth)
    if axes == "SYX":
        pixels, axes = np.moveaxis(pixels, 0, -1), "YXS"
    if axes not in ("YX", "YXS") or pixels.dtype.kind not in "uif":
        raise ValueError(
            f"{path}: an image must have rows, columns and bands of real numbers; got axes {axes} of {pixels.dtype}"
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if alphas and axes == "YXS":
        pixels = pixels[..., :-alphas]
    return StoredImage(path, pixels, orientation if orientation in _TURNS else 1)
