"""Units of an image's values: the colour widths of `Bilateral` are in 0..255, so every image is brought to that range.

One rule for the NumPy API, the torch API, the drop-in and the commands; what is annotated Any takes NumPy arrays and torch tensors
alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ImageRange = tuple[float, float]

BYTES: ImageRange = (0.0, 255.0)

# Interpolation and noise move floats by this much out of 0..255 (bicubic: by 11 % of a step in each direction).
_SLACK = 32.0

# Floats that stay below are too dark to be meant in 0..255: they are in 0..1, or scaled by mean and standard deviation.
_SMALLEST_PEAK = 4.0

ARGUMENT = "image_range=({}, {})"
OPTION = "--image-range {},{}"


def check_image_range(image_range: Sequence[float] | None) -> ImageRange | None:
    """The range as two floats, or None. Raises ValueError unless it is (low, high), finite, low < high."""
    if image_range is None:
        return None
    try:
        low, high = (float(value) for value in image_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(
            f"image_range must be (low, high), the finite values of black and white, low < high; got {image_range!r}"
        )
    return low, high


@dataclass(frozen=True)
class UnclearRange:
    """An image whose dtype and values do not tell their range. low, high: its smallest and largest value."""

    dtype: str
    low: float
    high: float

    @property
    def likely(self) -> tuple[str, str]:
        """The range that such an image usually has."""
        if self.low >= 0 and self.high <= 1:
            return "0", "1"
        if self.dtype == "uint16":
            return "0", next(str(2**bits - 1) for bits in (10, 12, 14, 16) if self.high < 2**bits)
        return f"{self.low:.6g}", f"{self.high:.6g}"

    @property
    def is_standardised(self) -> bool:
        """Whether the values look like those of an image minus its mean, divided by its standard deviation."""
        return -_SMALLEST_PEAK < self.low < 0 and self.high < _SMALLEST_PEAK

    def __str__(self) -> str:
        return f"got {self.dtype} with values in {self.low:.6g}..{self.high:.6g}"


def is_whole(values: Any) -> bool:
    """Whether all of the floats, an array's or a tensor's, are whole numbers."""
    return bool((values == values.round()).all())


def unclear_range(
    dtype: object,
    extremes: Callable[[], tuple[float, float]] | None,
    widths: Iterable[float] = (),
    *,
    whole: Callable[[], bool] | None = None,
) -> UnclearRange | None:
    """What is unclear about the units of an image, or None where dtype and values leave no doubt.

    uint8 is 0..255, and bool is 0..1. Any other image is taken to be in 0..255 if its values say so: integers that lie within it
    and are not all 0 or 1, floats that leave it by no more than interpolation does and are not all within 4 of 0. Floats closer
    to 0 are judged as integers if they are whole numbers, as those of a dark image of bytes are. Where all values are equal, the
    range does not matter. A colour width below 1 or above 255 is in the image's own units, so the values are taken as they are.

    dtype: NumPy's or torch's. extremes: returns the smallest and largest value; None where values must not be read, and then
    there is no doubt. widths: the colour widths of the kernels. whole: returns whether all values are whole numbers; called for
    dark floats alone. None: they are not.
    """
    name = str(dtype).removeprefix("torch.")
    if name in ("uint8", "bool") or extremes is None or any(not 1 <= width <= 255 for width in widths):
        return None
    low, high = extremes()
    if not low < high or not math.isfinite(high - low):  # NaN and inf have errors of their own
        return None
    if "float" in name or "double" in name:
        dark, slack = max(abs(low), abs(high)) < _SMALLEST_PEAK, _SLACK
        if dark and low >= 0 and high > 1 and whole is not None and whole():
            dark = False
    else:
        dark, slack = high <= 1, 0.0
    if not dark and -slack <= low and high <= BYTES[1] + slack:
        return None
    return UnclearRange(name, low, high)


def resolve_image_range(
    image_range: Sequence[float] | None,
    dtype: object,
    extremes: Callable[[], tuple[float, float]] | None,
    *,
    widths: Iterable[float] = (),
    whole: Callable[[], bool] | None = None,
    name: str = "image",
    remedy: str = ARGUMENT,
) -> ImageRange:
    """The values that stand for black and white: those given, else those that dtype and values tell, see `unclear_range`.

    name: what the image is called in errors. remedy: how a range is given, with two places for numbers.
    Raises ValueError with both remedies where the range is not clear.
    """
    given = check_image_range(image_range)
    if given is not None:
        return given
    doubt = unclear_range(dtype, extremes, widths, whole=whole)
    if doubt is not None:
        scaled, kept = remedy.format(*doubt.likely), remedy.format(0, 255)
        sixteen = remedy.format(0, 65535)
        example = f", {sixteen} for 16 bits," if doubt.dtype == "uint16" and scaled != sixteen else ""
        raise ValueError(
            f"{name} must be in 0..255, the units of the colour widths, or its range must be given; {doubt}. Give {scaled}"
            f"{example} to map it to 0..255, or {kept} to take the values as they are"
            + (". If it was scaled by mean and standard deviation, undo that" if doubt.is_standardised else "")
        )
    return (0.0, 1.0) if str(dtype).removeprefix("torch.") == "bool" else BYTES


def map_to_bytes(values: Any, image_range: ImageRange) -> Any:
    """Float values mapped linearly so that ``image_range`` becomes 0..255, without clipping."""
    low, high = image_range
    return values if image_range == BYTES else (values - low) * (BYTES[1] / (high - low))
