"""Permutohedral lattices as operators: build, filter, and their derivatives (Adams, Baek, Davis, Eurographics 2010).

The derivative is that of the lattice operator itself: barycentric weights are piecewise linear in the features, and vertices
stay where they are. On the faces between simplices, a set of measure zero, it is that of the side that the point counts to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.kernels import check_normalization
from deeplab_crf.ops.library import no_second_derivative, register_operator
from deeplab_crf.ops.tensors import address, check_like, check_shape, type_suffix
from deeplab_crf.workspace import borrowed_parts

# Keeps 1 / s finite where no weight reaches a point (pydensecrf's constant).
NORM_EPSILON = 1e-20


class Lattice(NamedTuple):
    """The lattices of B images of N points with d features: rows int32 ``(B, N, d+1)``, weights ``(B, N, d+1)``, structure int32,
    one-dimensional. The three belong together: kernels read memory at what rows and structure say."""

    rows: Tensor
    weights: Tensor
    structure: Tensor

    def filter(self, values: Tensor, *, transpose: bool = False) -> Tensor:
        """``L values``, or ``L^T values``, for values ``(B, N, C)``: no normalisation. Differentiable in values (twice) and in
        the features that the lattice was built from."""
        result: Tensor = torch.ops.deeplab_crf.lattice_filter(values, *self, transpose)
        return result


def build_lattice(features: Tensor) -> Lattice:
    """The lattices over ``features`` ``(B, N, d)``, float32 or float64 of any strides, d from 1 to 32, already divided by their
    standard deviations. Raises ValueError or TypeError for other shapes and dtypes, NaN, inf, and values beyond 2^30 lattice
    units."""
    return Lattice(*torch.ops.deeplab_crf.lattice_build(features))


def normalisation(lattice: Lattice, mode: str, mask: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Factors ``(B, N)`` before and after the filter, None for ones: ``K V = norm_out * L(norm_in * V)``, differentiable.

    With s = L(1), "symmetric" is ``(s + 1e-20)^(-1/2)`` on both sides, "before" and "after" are ``1 / (s + 1e-20)`` on one.
    mask: ``(B, N)`` of the lattice's dtype, 1 for points that take part and 0 for others, whose factors are 0; s = L(mask) then.
    """
    check_normalization(mode)
    if mode == "none":
        return mask, mask
    norm = torch.ops.deeplab_crf.lattice_norm(*lattice, mask, mode == "symmetric")
    if mode == "symmetric":
        return norm, norm
    return (norm, mask) if mode == "before" else (mask, norm)


def check_lattice(rows: Tensor, weights: Tensor, structure: Tensor, batch: int, num_points: int) -> None:
    """Raises unless the three are a batch of lattices over ``batch`` images of ``num_points`` points, contiguous."""
    for tensor, name in ((rows, "rows"), (structure, "structure")):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise TypeError(f"{name} must be contiguous int32 as lattice_build returns it; got {tensor.dtype}")
    if not weights.is_contiguous():
        raise ValueError(f"weights must be contiguous as lattice_build returns them; got strides {weights.stride()}")
    check_shape(weights, rows.shape, "weights")
    points, dims, vertices = _native.lattice_sizes(address(structure), structure.numel())
    if tuple(rows.shape) != (len(vertices), points, dims + 1):
        raise ValueError(
            f"rows and structure must come from one lattice_build; got rows of shape {tuple(rows.shape)} and a structure for "
            f"{(len(vertices), points, dims + 1)}"
        )
    if (len(vertices), points) != (batch, num_points):
        raise ValueError(
            f"values must have the lattice's {len(vertices)} images of {points} points; got {batch} images of {num_points} points"
        )


def _build(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    suffix = type_suffix(features.dtype, "features")
    shape = _check_features(features)
    builder = getattr(_native, f"LatticeBatch{suffix.upper()}")(
        address(features), shape, tuple(features.stride()), torch.get_num_threads()
    )
    rows = torch.empty((shape[0], shape[1], shape[2] + 1), dtype=torch.int32)
    weights = torch.empty(rows.shape, dtype=features.dtype)
    builder.embed(address(rows), address(weights))
    structure = torch.empty(builder.structure_size, dtype=torch.int32)
    builder.connect(address(rows), address(structure))
    return rows, weights, structure


def _check_features(features: Tensor) -> tuple[int, ...]:
    if features.ndim != 3 or features.numel() == 0:
        raise ValueError(f"features must have shape (B, N, d), none of them 0; got {tuple(features.shape)}")
    if features.shape[2] > _native.MAX_DIMENSIONS:
        raise ValueError(
            f"features must have at most {_native.MAX_DIMENSIONS} dimensions (B, N, d); got d = {features.shape[2]}. "
            "Project them to fewer, for example by PCA"
        )
    return tuple(features.shape)


def _build_fake(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, points, dims = features.shape
    shape = (batch, points, dims + 1)
    size = torch.library.get_ctx().new_dynamic_size()
    rows, structure = features.new_empty(shape, dtype=torch.int32), features.new_empty(size, dtype=torch.int32)
    return rows, features.new_empty(shape), structure


def _save_features(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[0], output[2])
    ctx.save_for_backward(*inputs)


def _build_backward(ctx: Any, grad_rows: None, grad_weights: Tensor | None, grad_structure: None) -> Tensor | None:
    if grad_weights is None:
        return None
    result: Tensor = torch.ops.deeplab_crf.lattice_build_backward(grad_weights, *ctx.saved_tensors)
    return result


def _embed_gradient(grad_weights: Tensor, features: Tensor) -> Tensor:
    suffix = type_suffix(features.dtype, "features")
    batch, points, dims = _check_features(features)
    check_shape(grad_weights, (batch, points, dims + 1), "grad_weights")
    check_like(grad_weights, features, "grad_weights", "features")
    grad_weights = grad_weights.contiguous()
    result = torch.empty((batch, points, dims), dtype=features.dtype)
    getattr(_native, f"lattice_embed_gradient_{suffix}")(
        address(features),
        (batch, points, dims),
        tuple(features.stride()),
        address(grad_weights),
        address(result),
        torch.get_num_threads(),
    )
    return result


def _filter(values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor, transpose: bool = False) -> Tensor:
    suffix, channels = _check_values(values, rows, weights, structure)
    values = values.contiguous()
    out = torch.empty_like(values)
    if channels == 0:
        return out
    threads = torch.get_num_threads()
    size = getattr(_native, f"lattice_filter_workspace_{suffix}")(address(structure), channels, threads)
    with borrowed_parts([size * values.itemsize]) as (workspace,):
        getattr(_native, f"lattice_filter_{suffix}")(
            (address(rows), address(weights), address(structure)),
            address(values),
            address(out),
            channels,
            workspace,
            transpose,
            threads,
        )
    return out


def _check_values(values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor) -> tuple[str, int]:
    """Suffix of the native functions and number of channels."""
    if values.ndim != 3:
        raise ValueError(f"values must have shape (B, N, C); got {tuple(values.shape)}")
    suffix = type_suffix(values.dtype, "values")
    check_like(values, weights, "values", "the lattice")
    check_lattice(rows, weights, structure, values.shape[0], values.shape[1])
    return suffix, values.shape[2]


def _filter_fake(values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor, transpose: bool = False) -> Tensor:
    return values.new_empty(values.shape)


def _save_filter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.transpose = inputs[4]


def _filter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, *lattice = ctx.saved_tensors
    grad_values = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_values = torch.ops.deeplab_crf.lattice_filter(grad, *lattice, not ctx.transpose)
    if ctx.needs_input_grad[2]:
        grad_weights = torch.ops.deeplab_crf.lattice_filter_weights_backward(grad, values, *lattice, ctx.transpose)
    return grad_values, None, grad_weights, None, None


def _filter_weights_gradient(
    grad: Tensor, values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor, transpose: bool
) -> Tensor:
    suffix, channels = _check_values(values, rows, weights, structure)
    check_shape(grad, values.shape, "grad")
    check_like(grad, values, "grad", "values")
    if channels == 0:
        return torch.zeros_like(weights)
    grad, values = grad.contiguous(), values.contiguous()
    out = torch.empty_like(weights)
    threads = torch.get_num_threads()
    size = 2 * getattr(_native, f"lattice_filter_workspace_{suffix}")(address(structure), channels, threads)
    with borrowed_parts([size * values.itemsize]) as (workspace,):
        getattr(_native, f"lattice_filter_weight_gradient_{suffix}")(
            (address(rows), address(weights), address(structure)),
            address(values),
            address(grad),
            address(out),
            channels,
            workspace,
            transpose,
            threads,
        )
    return out


def _norm(rows: Tensor, weights: Tensor, structure: Tensor, mask: Tensor | None, root: bool) -> Tensor:
    """``(s + epsilon)^-1``, or its root, with s = L(mask); times the mask. On NumPy, like ops/features.py."""
    values = torch.from_numpy(np.ones(rows.shape[:2], weights.numpy().dtype)) if mask is None else mask
    check_shape(values, rows.shape[:2], "mask")
    norm = _filter(values[..., None], rows, weights, structure)[..., 0]
    sums = norm.numpy()
    sums += sums.dtype.type(NORM_EPSILON)
    np.reciprocal(sums, out=sums)
    if root:
        np.sqrt(sums, out=sums)
    if mask is not None:
        sums *= mask.numpy()
    return norm


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weights, structure, mask, root = inputs
    ctx.save_for_backward(rows, weights, structure, output, *([] if mask is None else [mask]))
    ctx.root = root


def _norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, weights, structure, norm, *mask = ctx.saved_tensors
    grad_sums = grad * (-0.5 * norm**3 if ctx.root else -(norm**2))
    values = mask[0] if mask else torch.ones_like(norm)
    grad_weights = torch.ops.deeplab_crf.lattice_filter_weights_backward(
        grad_sums[..., None], values[..., None], rows, weights, structure, False
    )
    return None, grad_weights, None, None, None


register_operator("lattice_build", _build, _build_fake, _build_backward, _save_features)
register_operator(
    "lattice_build_backward",
    _embed_gradient,
    lambda grad_weights, features: features.new_empty(features.shape),
    no_second_derivative("lattice_build"),
)
register_operator("lattice_filter", _filter, _filter_fake, _filter_backward, _save_filter)
register_operator(
    "lattice_filter_weights_backward",
    _filter_weights_gradient,
    lambda grad, values, rows, weights, structure, transpose: weights.new_empty(weights.shape),
    no_second_derivative("lattice_filter in the features of its lattice"),
)
register_operator(
    "lattice_norm",
    _norm,
    lambda rows, weights, structure, mask, root: weights.new_empty(rows.shape[:2]),
    _norm_backward,
    _save_norm,
)
