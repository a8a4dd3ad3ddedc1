"""Between torch's layout of scores, labels first, and the engine's, where a point's labels lie side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeplab_crf.ops.library import register_operator
from deeplab_crf.ops.tensors import empty_rows, pack_rows, type_suffix


def pack_energies(logits: Tensor) -> Tensor:
    """Unary energies ``-logits`` in the layout of the engine: ``(B, N, L)``, contiguous, from logits ``(B, L, N)``, float32 or
    float64 of any strides. Raises ValueError for NaN and inf: looking for them costs nothing here."""
    result: Tensor = torch.ops.deeplab_crf.pack_energies(logits)
    return result


def unpack_scores(scores: Tensor) -> Tensor:
    """``(B, N, L)`` as ``(B, L, N)``, contiguous. 3 ms for 187500 x 21 floats, where torch's ``contiguous`` takes 11."""
    result: Tensor = torch.ops.deeplab_crf.unpack_scores(scores)
    return result


def _pack(logits: Tensor) -> Tensor:
    _check(logits, "logits", "(B, L, N)")
    rows = logits.transpose(1, 2)
    out = empty_rows(rows.shape, logits.dtype)
    wrong = pack_rows(rows, out, -1.0) if out.numel() else None
    if wrong is not None:
        image, point, label = wrong
        raise ValueError(
            f"logits must be finite; got {rows[wrong].item()} for label {label} of point {point} of image {image}"
        )
    return out


def _unpack(scores: Tensor) -> Tensor:
    _check(scores, "scores", "(B, N, L)")
    out = empty_rows((scores.shape[0], scores.shape[2], scores.shape[1]), scores.dtype)
    for image, rows in zip(out, scores, strict=True):
        image.copy_(rows.t())  # two-dimensional: torch's fast path
    return out


def _check(values: Tensor, name: str, shape: str) -> None:
    if values.ndim != 3:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(values.shape)}")
    type_suffix(values.dtype, name)


def _fake(values: Tensor) -> Tensor:
    return values.new_empty((values.shape[0], values.shape[2], values.shape[1]))


def _pack_backward(ctx: Any, grad: Tensor) -> Tensor:
    return -unpack_scores(grad)


def _unpack_backward(ctx: Any, grad: Tensor) -> Tensor:
    return grad.transpose(1, 2)


register_operator("pack_energies", _pack, _fake, _pack_backward)
register_operator("unpack_scores", _unpack, _fake, _unpack_backward)
