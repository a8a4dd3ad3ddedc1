"""The convolutions by torch's own operations, for torch.func and forward derivatives, which know no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeplab_crf.ops.conv.shapes import Geometry
from deeplab_crf.ops.library import has_tangent


def is_transformed(tensors: Sequence[Tensor | None]) -> bool:
    """Whether torch.func (vmap, grad, jvp) or forward derivatives are at work. From an operator with kernels of its own they would
    take no derivative, or an error, or one of zero."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:  # which unpack_dual asks first, too
        return False
    return any(tensor is not None and has_tangent(tensor) for tensor in tensors)


def by_operations(
    x: Tensor, parameters: tuple[Tensor, Tensor | None], residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """`dilated_conv2d`, nothing in place."""
    out = torch.conv2d(x, *parameters, *geometry)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def sum_by_operations(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], geometries: Sequence[Geometry]
) -> Tensor:
    """`aspp_sum`."""
    branches = zip(weights, biases if biases else [None] * len(weights), geometries, strict=True)
    return torch.stack([torch.conv2d(x, weight, bias, *geometry) for weight, bias, geometry in branches]).sum(dim=0)
