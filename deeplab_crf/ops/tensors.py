"""Tensors on their way to the kernels: dtypes, addresses, and checks that name the argument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deeplab_crf import _native

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}


def type_suffix(dtype: torch.dtype, name: str) -> str:
    """How the native module names functions of this dtype. Raises TypeError unless it is float32 or float64."""
    if dtype not in _SUFFIXES:
        raise TypeError(f"{name} must be float32 or float64; got {dtype}. Convert it with .float()")
    return _SUFFIXES[dtype]


def address(tensor: Tensor | None) -> int:
    """Where the first element lies; 0 for None and for a tensor without elements. The caller keeps the tensor alive."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def empty_rows(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory of the CPU for a result of the size of Q or more. NumPy asks the system for huge pages, which torch does
    not: writing to 80 MB of it for the first time takes 13 ms instead of 28."""
    return torch.from_numpy(np.empty(tuple(shape), np.float32 if dtype == torch.float32 else np.float64))


def check_shape(tensor: Tensor, shape: Sequence[int], name: str) -> None:
    """Raises ValueError unless ``tensor`` has exactly this shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}; got {tuple(tensor.shape)}")


def check_like(tensor: Tensor, model: Tensor, name: str, model_name: str) -> None:
    """Raises unless ``tensor`` has the dtype and the device of ``model``."""
    if tensor.dtype != model.dtype:
        raise TypeError(
            f"{name} must have the dtype of {model_name}, {model.dtype}; got {tensor.dtype}. Convert one of them"
        )
    if tensor.device != model.device:
        raise ValueError(
            f"{name} must be on the device of {model_name}, {model.device}; got {tensor.device}. Move it with .to()"
        )


def pack_rows(values: Tensor, out: Tensor, factor: float = 1.0) -> tuple[int, int, int] | None:
    """Writes ``factor * values``, ``(B, N, L)`` of any strides, into ``out``, contiguous. Returns (image, point, label) of a value
    that is not finite, or None. Where points lie next to each other this takes a fraction of torch's time."""
    suffix = type_suffix(values.dtype, "values")
    batch, points, labels = values.shape
    _, point_stride, label_stride = values.stride()
    wrong = None
    for image in range(batch):
        index = getattr(_native, f"pack_labels_{suffix}_{suffix}")(
            address(values[image]),
            points,
            labels,
            point_stride,
            label_stride,
            address(out[image]),
            factor,
            torch.get_num_threads(),
        )
        if index >= 0 and wrong is None:
            wrong = (image, index % points, index // points)
    return wrong


def contiguous_rows(values: Tensor) -> Tensor:
    """``values`` ``(B, N, L)``, contiguous."""
    if values.is_contiguous():
        return values
    out = empty_rows(values.shape, values.dtype)
    pack_rows(values, out)
    return out
