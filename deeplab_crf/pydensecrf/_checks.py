"""What the drop-in asks of its arguments. Every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.core.arrays import refuse_masked
from deeplab_crf.core.image_range import is_whole, unclear_range
from deeplab_crf.runtime import checks
from deeplab_crf.runtime.checks import shown

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def real_array(value: object, name: str) -> NDArray[Any]:
    """``value`` as an array of bool, integers or floats; not copied where it is one. TypeError for anything else."""
    refuse_masked(value, name)
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise ValueError(f"{name} must be an array of numbers; got one that NumPy cannot form ({error})") from error
    except (TypeError, RuntimeError) as error:  # a tensor on a GPU, or one that requires gradients
        raise TypeError(f"{name} must be an array of numbers; got {type(value).__name__} ({error})") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of real numbers; got {type(value).__name__} of dtype {array.dtype}")
    return array


def check_finite(array: NDArray[Any], name: str) -> None:
    """Raise ValueError naming the first value that is NaN, infinite, or too large for float32."""
    if array.dtype.kind != "f" or array.size == 0:
        return
    # min and max carry NaN along, and unlike isfinite() they need no array of the same size.
    low, high = float(array.min()), float(array.max())
    if low >= -_FLOAT32_MAX and high <= _FLOAT32_MAX:
        return
    bad = ~(np.abs(array) <= _FLOAT32_MAX)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
    raise ValueError(f"{name} must be finite in float32; got {array[index]} at index {index} ({bad.sum()} in all)")


def check_units(image: NDArray[Any], name: str, colour_widths: Iterable[float]) -> None:
    """Raise ValueError where it is not clear that the image's values are in 0..255, as those of uint8 are."""
    doubt = unclear_range(
        image.dtype, lambda: (float(image.min()), float(image.max())), colour_widths, whole=lambda: is_whole(image)
    )
    if doubt is None:
        return
    low, high = doubt.likely
    factor = "255" if high == "1" else f"(255 / {high})"
    scaled = f"{name} * {factor}" if low == "0" else f"({name} - {low}) * (255 / ({high} - {low}))"
    raise ValueError(
        f"{name} must be in 0..255, the units of srgb; {doubt}. Convert it to uint8, such as ({scaled}).astype(np.uint8)"
    )


def whole_number(value: object, name: str, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``. 5.0 is taken, for scripts that divide; 2.5 is not."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        if not isinstance(value, float | np.floating):
            raise TypeError(f"{name} must be an integer; got {type(value).__name__} {value!r}") from None
        if not float(value).is_integer():
            raise ValueError(f"{name} must be an integer; got {value!r}") from None
        number = int(value)
    if number < minimum:
        raise ValueError(f"{name} must be {minimum} or more; got {shown(number)}")
    return checks.whole_number(number, name, minimum)


def widths(
    value: object, count: int, name: str, meaning: str, *, fewer: bool = False, more: bool = False
) -> tuple[Any, ...]:
    """Standard deviations, positive and finite: one number for all, or ``count`` of them, ``meaning`` saying of what.

    fewer: whether a sequence may lack its last ones, which are 1 then. more: whether it may have more, which are ignored.
    The numbers come back as they are: NumPy rounds a division by ``float`` and one by ``numpy.float64`` differently,
    and a feature's last bit decides which lattice vertices exist.
    """
    refuse_masked(value, name)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, Number):
        values: tuple[Any, ...] = (value,) * count
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        values = tuple(value)
    else:
        raise TypeError(f"{name} must be a number or a sequence of {count} ({meaning}); got {type(value).__name__}")
    if (len(values) < count and not fewer) or (len(values) > count and not more):
        wanted = f"{'up to ' if fewer else ''}{count}{' or more' if more else ''}"
        raise ValueError(f"{name} must be one number or {wanted} ({meaning}); got {len(values)}: {value!r}")
    values = (*values[:count], *(1,) * (count - len(values)))
    for width in values:
        try:
            number = checks.real_number(float(width) if isinstance(width, bool) else width, name)
        except TypeError:
            raise TypeError(f"{name} must hold real numbers; got {shown(width)}") from None
        # Positive as float32 too: the features are computed in it.
        if not (0.0 < number <= _FLOAT32_MAX and np.float32(number) > 0):
            raise ValueError(f"{name} must be positive and finite (standard deviations); got {value!r}")
    return values


def compatibility(compat: object, num_labels: int) -> float | NDArray[np.float32]:
    """pydensecrf's ``compat`` as the engine takes it: a Potts weight, (L,), or the symmetric part of (L, L).

    Arrays are copied, so later changes have no effect.
    """
    array = real_array(compat, "compat")
    allowed: tuple[tuple[int, ...], ...] = ((), (num_labels,), (num_labels, num_labels))
    if array.shape not in allowed:
        raise ValueError(
            f"compat must be a number, or have shape ({num_labels},) or ({num_labels}, {num_labels}) for {num_labels} "
            f"labels; got shape {array.shape}"
        )
    check_finite(array, "compat")
    if array.ndim == 0:
        return float(np.float32(array))
    single = np.array(array, dtype=np.float32)
    return (np.float32(0.5) * (single + single.T)) if single.ndim == 2 else single


def flatten_points(array: NDArray[Any], name: str, num_points: int, grid: tuple[int, ...]) -> NDArray[Any]:
    """``array`` of shape (rows, N), or (rows, H, W) with ``grid`` (H, W), as (rows, N).

    Where the points have no shape, ``grid`` is (N,) and any trailing shape of N elements is taken, as of a volume.
    """
    free = len(grid) == 1
    trailing = array.shape[1:]
    fits = trailing in ((num_points,), grid) or (free and math.prod(trailing) == num_points)
    if array.ndim >= 2 and array.shape[0] > 0 and fits:
        return array.reshape(array.shape[0], num_points)
    expected = f"(rows, {num_points})" + ("" if free else f" or (rows, {grid[0]}, {grid[1]})")
    if not free and trailing == grid[::-1]:
        hint = "; DenseCRF2D takes the width first, then the height"
    elif array.shape[:-1] in ((num_points,), grid):
        hint = f"; move its last axis to the front, as in numpy.moveaxis({name}, -1, 0)"
    else:
        hint = ""
    raise ValueError(f"{name} must have shape {expected}, the points last; got {array.shape}{hint}")
