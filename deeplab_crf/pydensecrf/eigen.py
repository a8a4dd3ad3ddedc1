"""``pydensecrf.eigen``: matrices and vectors in Eigen's layout, here plain NumPy arrays.

pydensecrf wraps Eigen matrices in objects that can do nothing but be converted to an array. Here the array itself is
returned, column-major float32 like theirs: it exports the buffer protocol on every Python, ``np.array`` and
``np.asarray`` take it, what is computed from it is an ordinary array, and it pickles without this package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplab_crf.pydensecrf._checks import real_array

__all__ = ["MatrixXf", "VectorXf", "matrixXf", "vectorXf"]


class _EigenType(type):
    """A class whose instances are the float32 arrays of ``dimensions`` axes."""

    dimensions: int

    def __instancecheck__(cls, instance: object) -> bool:
        if not isinstance(instance, np.ndarray):
            return False
        return instance.dtype == np.float32 and instance.ndim == cls.dimensions

    def __call__(cls, *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        if args or kwargs:
            name = cls.__name__
            raise TypeError(f"{name}() takes no arguments and is empty; use {name[0].lower()}{name[1:]}(array)")
        return np.zeros((0,) * cls.dimensions, np.float32)


class VectorXf(metaclass=_EigenType):
    """Any 1-D float32 array. ``VectorXf()`` is an empty one."""

    dimensions = 1


class MatrixXf(metaclass=_EigenType):
    """Any 2-D float32 array. ``MatrixXf()`` is an empty one, such as the scratch matrices of ``startInference``."""

    dimensions = 2


def vectorXf(arr: ArrayLike) -> NDArray[np.float32]:
    """A float32 copy of a 1-D array. Raises ValueError for another number of axes."""
    return _copy(arr, 1)


def matrixXf(arr: ArrayLike) -> NDArray[np.float32]:
    """A column-major float32 copy of a 2-D array. Raises ValueError for another number of axes."""
    return _copy(arr, 2)


def _copy(arr: ArrayLike, dimensions: int) -> NDArray[np.float32]:
    array = real_array(arr, "arr")
    if array.ndim != dimensions:
        raise ValueError(f"arr must have {dimensions} axes; got shape {array.shape}")
    return np.array(array, dtype=np.float32, order="F")
