"""Arrays on their way to the kernels: dtypes, addresses, and checks that name the argument."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from deeplab_crf.runtime.checks import shown

FloatArray: TypeAlias = NDArray[np.floating[Any]]

SUPPORTED_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def check_dtype(dtype: DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """The dtype the engine computes in. Raises ValueError unless it is float32 or float64."""
    try:
        resolved = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be float32 or float64; got {shown(dtype)}") from None
    if resolved not in SUPPORTED_DTYPES:
        raise ValueError(f"{name} must be float32 or float64; got {resolved}")
    return resolved


def type_suffix(dtype: np.dtype[Any]) -> str:
    """How the native module names functions of this dtype."""
    return "f32" if dtype == np.float32 else "f64"


def address(array: NDArray[Any] | None) -> int:
    """Where the array's first element lies; 0 for None. The caller keeps the array alive."""
    return 0 if array is None else int(array.ctypes.data)


def as_real_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """``values`` as an array of bool, integers or floats. Raises TypeError for anything else (strings, objects, complex), and
    ValueError for masked values."""
    refuse_masked(values, name)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch's, of a tensor that requires gradients
        raise TypeError(f"{name} must be an array of numbers; got {type(values).__name__} ({error})") from error
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must be an array of real numbers; got dtype {array.dtype}")
    return array


def refuse_masked(values: object, name: str) -> None:
    """Raise ValueError for a masked array of NumPy, or a sequence with one, in which a value is masked: as an array it would lose
    its mask without a word."""
    parts = values if isinstance(values, list | tuple) else (values,)
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(
            f"{name} must not hold masked values; got a numpy.ma.MaskedArray with some. Fill them with .filled(value): pixels of "
            "a label map with the label that is ignored, others with a number that you choose"
        )


def as_engine_floats(array: NDArray[Any]) -> FloatArray:
    """float32 and float64 in native byte order as they are; other dtypes as float32 (float64 where that holds more)."""
    if array.dtype in SUPPORTED_DTYPES and array.dtype.isnative:
        return array
    wide = array.dtype.itemsize > 4 if array.dtype.kind in "iu" else array.dtype.itemsize >= 8
    return array.astype(np.float64 if wide else np.float32)


def element_strides(array: NDArray[Any]) -> tuple[int, ...]:
    """Strides in elements. The array's strides must be multiples of its item size (see `aligned`)."""
    return tuple(stride // array.itemsize for stride in array.strides)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, or a copy where its address or strides are not whole elements (views into structured arrays)."""
    whole = array.flags.aligned and all(stride % array.itemsize == 0 for stride in array.strides)
    return array if whole else array.copy()
