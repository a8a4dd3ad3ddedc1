"""Scores in the engine's layout and back, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab_crf.core.energies import LARGEST_ENERGY
from deeplab_crf.ops.cuda.engine import engine_for
from deeplab_crf.ops.tensors import address, type_suffix


def pack_energies(scores: Tensor, factor: float, *, check: bool) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * scores``, ``(B, N, L)`` of any strides, contiguous, +inf capped as core/energies.py says; and, with ``check``,
    (image, point, label) of the first energy that is not accepted, or None: then this waits for the device."""
    engine, suffix = engine_for(scores), type_suffix(scores.dtype, "values")
    out = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if not out.numel():
        return out, None
    first = torch.empty(1 if check else 0, dtype=torch.int64, device=scores.device)
    engine.function(f"pack_energies_{suffix}")(
        engine.queue, _described(scores), address(out), factor, LARGEST_ENERGY, address(first)
    )
    index = int(first) if check else -1  # unsigned all ones: none
    _, points, labels = scores.shape
    return out, None if index < 0 else (index // points // labels, index % points, index // points % labels)


def contiguous_rows(values: Tensor) -> Tensor:
    """``values`` ``(B, N, L)``, contiguous."""
    return values if values.is_contiguous() else _transposed(values)


def unpack(scores: Tensor) -> Tensor:
    """``(B, N, L)`` as ``(B, L, N)``, contiguous."""
    return _transposed(scores.transpose(1, 2))


def _transposed(values: Tensor) -> Tensor:
    """``values`` of any strides, contiguous."""
    engine, suffix = engine_for(values), type_suffix(values.dtype, "values")
    out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    if out.numel():
        engine.function(f"transpose_{suffix}")(engine.queue, _described(values), address(out))
    return out


def _described(values: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return address(values), tuple(values.shape), values.stride()
