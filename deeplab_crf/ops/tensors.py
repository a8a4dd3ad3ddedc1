"""Conversion of tensors for the native functions: dtypes, addresses, and checks that name the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
HALF_SUFFIXES = {torch.float16: "f16", torch.bfloat16: "bf16"}


def type_suffix(dtype: torch.dtype, name: str, *, half: bool = False) -> str:
    """Return the suffix of the native functions for this dtype.

    Raises:
        TypeError: It is not float32 or float64, nor, with ``half``, float16 or bfloat16.
    """
    if half and dtype in HALF_SUFFIXES:
        return HALF_SUFFIXES[dtype]
    if dtype not in _SUFFIXES:
        raise TypeError(f"{name} must be float32 or float64; got {dtype}. Convert it with .float()")
    return _SUFFIXES[dtype]


def address(tensor: Tensor | None) -> int:
    """Return the address of the first element, or 0 for None and empty tensors; the caller keeps the tensor alive."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def check_shape(tensor: Tensor, shape: Sequence[int], name: str) -> None:
    """Check that ``tensor`` has exactly this shape.

    Raises:
        ValueError: It has another shape.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}; got {tuple(tensor.shape)}")


def check_like(tensor: Tensor, model: Tensor, name: str, model_name: str) -> None:
    """Check that ``tensor`` has the dtype and the device of ``model``.

    Raises:
        TypeError: The dtypes differ.
        ValueError: The devices differ.
    """
    if tensor.dtype != model.dtype:
        raise TypeError(
            f"{name} must have the dtype of {model_name}, {model.dtype}; got {tensor.dtype}. Convert one of them"
        )
    check_device(tensor, model, name, model_name)


def check_device(tensor: Tensor, model: Tensor, name: str, model_name: str) -> None:
    """Check that ``tensor`` is on the device of ``model``.

    Raises:
        ValueError: It is on another device.
    """
    if tensor.device != model.device:
        raise ValueError(
            f"{name} must be on the device of {model_name}, {model.device}; got {tensor.device}. Move it with .to()"
        )


def alias(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor of the same values that no other thread can resize or redirect through ``.data``.

    Raises:
        RuntimeError: The memory of the tensor was freed.
    """
    same = tensor.detach()
    last = same.storage_offset() + sum((n - 1) * s for n, s in zip(same.shape, same.stride(), strict=True))
    held = same.untyped_storage().nbytes()
    if same.numel() and (last + 1) * same.element_size() > held:
        raise RuntimeError(
            f"expected {name} to have memory for its size, {list(same.shape)}, but its storage has {held} bytes: it was "
            "freed or made smaller"
        )
    return same


def check_unchanged(found: Any, expected: Any) -> None:
    """Check that the aliases have the sizes that an algorithm was chosen for.

    Raises:
        RuntimeError: Another thread has changed one.
    """
    if found != expected:
        raise RuntimeError("expected tensors that keep their sizes, but another thread changed one during the call")


def empty_rows(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return uninitialised memory for a result of the size of Q or more.

    NumPy asks the system for huge pages, which torch does not: writing to 80 MB of it for the first
    time takes 13 ms instead of 28.
    """
    return torch.from_numpy(np.empty(tuple(shape), np.float32 if dtype == torch.float32 else np.float64))
