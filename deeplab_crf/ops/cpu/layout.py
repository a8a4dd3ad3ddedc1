"""Scores in the engine's layout and back, on the CPU; memory for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.core.energies import LARGEST_ENERGY
from deeplab_crf.ops.tensors import address, type_suffix


def empty_rows(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for a result of the size of Q or more. NumPy asks the system for huge pages, which torch does not:
    writing to 80 MB of it for the first time takes 13 ms instead of 28."""
    return torch.from_numpy(np.empty(tuple(shape), np.float32 if dtype == torch.float32 else np.float64))


def pack_energies(scores: Tensor, factor: float, *, check: bool) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * scores``, ``(B, N, L)`` of any strides, contiguous, +inf capped as core/energies.py says; and, with ``check``,
    (image, point, label) of the first energy that is not accepted, or None."""
    out, wrong = _pack(scores, factor, LARGEST_ENERGY)
    return out, wrong if check else None


def _pack(values: Tensor, factor: float, largest: float) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * values``, ``(B, N, L)`` of any strides, contiguous, and (image, point, label) of the first that is not finite.
    largest: as in `_native.pack_labels_f32_f32`. Where points lie next to each other this takes a fraction of torch's time."""
    suffix = type_suffix(values.dtype, "values")
    out = empty_rows(values.shape, values.dtype)
    batch, points, labels = values.shape if values.numel() else (0, 0, 0)
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
            largest,
            torch.get_num_threads(),
        )
        if index >= 0 and wrong is None:
            wrong = (image, index % points, index // points)
    return out, wrong


def contiguous_rows(values: Tensor) -> Tensor:
    """``values`` ``(B, N, L)``, contiguous."""
    return values if values.is_contiguous() else _pack(values, 1.0, math.inf)[0]


def unpack(scores: Tensor) -> Tensor:
    """``(B, N, L)`` as ``(B, L, N)``, contiguous."""
    out = empty_rows((scores.shape[0], scores.shape[2], scores.shape[1]), scores.dtype)
    for image, rows in zip(out, scores, strict=True):
        image.copy_(rows.t())  # two-dimensional: torch's fast path
    return out
