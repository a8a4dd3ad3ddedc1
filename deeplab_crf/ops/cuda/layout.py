"""Scores in the engine's layout and back, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab_crf.ops.cuda.engine import engine_for
from deeplab_crf.ops.tensors import address, type_suffix


def pack(values: Tensor, factor: float = 1.0, *, check: bool = False) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * values``, ``(B, N, L)`` of any strides, contiguous; and, with ``check``, (image, point, label) of the first value
    that is not finite, or None: then this waits for the device."""
    engine, suffix = engine_for(values), type_suffix(values.dtype, "values")
    out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    if not out.numel():
        return out, None
    first = torch.empty(1 if check else 0, dtype=torch.int64, device=values.device)
    described = (address(values), tuple(values.shape), values.stride())
    engine.function(f"transpose_{suffix}")(engine.queue, described, address(out), factor, address(first))
    index = int(first) if check else -1  # unsigned all ones: none
    _, points, labels = values.shape
    return out, None if index < 0 else (index // points // labels, index % points, index // points % labels)


def contiguous_rows(values: Tensor) -> Tensor:
    """``values`` ``(B, N, L)``, contiguous."""
    return values if values.is_contiguous() else pack(values)[0]


def unpack(scores: Tensor) -> Tensor:
    """``(B, N, L)`` as ``(B, L, N)``, contiguous."""
    return pack(scores.transpose(1, 2))[0]
