"""Convolutions composed of torch's operations: for other devices and dtypes, and for torch.func."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeplab_crf.ops.conv.shapes import Geometry, result_format
from deeplab_crf.ops.library import has_tangent


def is_transformed(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether torch.func (vmap, grad, jvp) or forward derivatives are active.

    An operator with kernels of its own would give them no derivative, an error, or a derivative of zero.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:  # unpack_dual checks it first, too
        return False
    return any(tensor is not None and has_tangent(tensor) for tensor in tensors)


def differentiable_conv2d(
    x: Tensor, parameters: tuple[Tensor, Tensor | None], residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Compute `dilated_conv2d` without operations in place."""
    out = torch.conv2d(x, *parameters, *geometry)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def differentiable_sum(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], geometries: Sequence[Geometry]
) -> Tensor:
    """Compute `aspp_sum` without operations in place."""
    branches = zip(weights, biases if biases else [None] * len(weights), geometries, strict=True)
    return torch.stack([torch.conv2d(x, weight, bias, *geometry) for weight, bias, geometry in branches]).sum(dim=0)


def torch_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Compute `dilated_conv2d` by torch's convolution, with the rest of the epilogue in place."""
    out = torch.conv2d(x, weight, bias, *geometry)
    if residual is not None:
        out += residual
    if relu:
        out.relu_()
    return out.contiguous(memory_format=result_format(x, weight))


def sum_branch_by_branch(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], geometries: Sequence[Geometry], policy: int
) -> Tensor:
    """Compute `aspp_sum` as a sequence of convolutions, each with the sum so far as its residual."""
    total: Tensor | None = None
    for i, (weight, geometry) in enumerate(zip(weights, geometries, strict=True)):
        bias = biases[i] if biases else None
        total = torch.ops.deeplab_crf.dilated_conv2d(x, weight, bias, total, *geometry, False, policy)
    assert total is not None
    return total.contiguous(memory_format=result_format(x, weights[0]))
