"""Permutohedral lattices as operators: build, filter, and their derivatives (Adams, Baek, Davis, Eurographics 2010).

The derivative is that of the lattice operator itself: barycentric weights are piecewise linear in the features, and vertices
stay where they are. On the faces between simplices, a set of measure zero, it is that of the side that the point counts to.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.core.pairwise import check_normalization
from deeplab_crf.ops.lattice import cpu, cuda
from deeplab_crf.ops.library import no_second_derivative, register_operator
from deeplab_crf.ops.tensors import HALF_SUFFIXES, check_device, check_like, check_shape, type_suffix

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

    def num_vertices(self) -> list[int]:
        """Vertices of each image's lattice; their sum is what `build_lattice` takes as ``max_vertices``. On CUDA this waits for the
        device, and raises ValueError as `check` does."""
        counts: list[int] = kernels_of(self.rows).vertices_of(self.rows, self.structure)
        return counts

    def check(self) -> None:
        """Raises ValueError if the features were not finite or too large, or touched more vertices than ``max_vertices``. Needed
        only on CUDA with ``max_vertices``, where nobody has looked yet; waits for the device."""
        check_header(self.header())

    def header(self) -> Tensor:
        """A small copy of what `check` looks at, for `check_header`, so that the lattice itself need not be kept."""
        result: Tensor = kernels_of(self.rows).header_of(self.structure)
        return result


def check_header(header: Tensor) -> None:
    """`Lattice.check` for a `Lattice.header`."""
    kernels_of(header).check_header(header)


def build_lattice(features: Tensor, max_vertices: int | None = None) -> Lattice:
    """The lattices over ``features`` ``(B, N, d)``, float32 or float64 of any strides, d from 1 to 32, already divided by their
    standard deviations.

    max_vertices: a bound of the number of vertices of all images together, 1 to B·N·(d+1). On CUDA memory then follows the bound
    and nothing waits for the device, so that the call can be captured in a CUDA graph; whether it sufficed is told by
    `Lattice.check`, and where it did not, results are NaN. On the CPU it is checked at once.

    Raises ValueError or TypeError for other shapes and dtypes, NaN, inf, and values beyond 2^30 lattice units (on CUDA with
    max_vertices: `Lattice.check` does)."""
    return Lattice(*torch.ops.deeplab_crf.lattice_build(features, max_vertices))


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


def check_lattice(
    kernels: ModuleType, rows: Tensor, weights: Tensor, structure: Tensor, batch: int, num_points: int
) -> None:
    """Raises unless the three are a batch of lattices over ``batch`` images of ``num_points`` points, contiguous. kernels:
    a module with the backend's ``check_lattice``."""
    for tensor, name in ((rows, "rows"), (structure, "structure")):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise TypeError(f"{name} must be contiguous int32 as lattice_build returns it; got {tensor.dtype}")
    if not weights.is_contiguous():
        raise ValueError(f"weights must be contiguous as lattice_build returns them; got strides {weights.stride()}")
    check_shape(weights, rows.shape, "weights")
    check_device(weights, rows, "weights", "rows")
    check_device(structure, rows, "structure", "rows")
    kernels.check_lattice(rows, structure)
    if tuple(rows.shape[:2]) != (batch, num_points):
        raise ValueError(
            f"values must have the lattice's {rows.shape[0]} images of {rows.shape[1]} points; "
            f"got {batch} images of {num_points} points"
        )


def kernels_of(tensor: Tensor) -> ModuleType:
    """The module with the lattice operators' backend for a tensor's device."""
    return cuda if tensor.is_cuda else cpu


def _build(kernels: ModuleType, features: Tensor, max_vertices: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    type_suffix(features.dtype, "features")
    batch, points, dims = _check_features(features)
    most = batch * points * (dims + 1)
    if max_vertices is not None and max_vertices < 1:
        raise ValueError(f"max_vertices must be a whole number from 1 to {most}, or None; got {max_vertices}")
    bound = None if max_vertices is None else min(max_vertices, most)
    result: tuple[Tensor, Tensor, Tensor] = kernels.build(features, bound)
    return result


def _check_features(features: Tensor) -> tuple[int, ...]:
    if features.ndim != 3 or features.numel() == 0:
        raise ValueError(f"features must have shape (B, N, d), none of them 0; got {tuple(features.shape)}")
    if features.shape[2] > _native.MAX_DIMENSIONS:
        raise ValueError(
            f"features must have at most {_native.MAX_DIMENSIONS} dimensions (B, N, d); got d = {features.shape[2]}. "
            "Project them to fewer, for example by PCA"
        )
    return tuple(features.shape)


def _build_fake(features: Tensor, max_vertices: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    batch, points, dims = features.shape
    shape = (batch, points, dims + 1)
    size = torch.library.get_ctx().new_dynamic_size()
    rows, structure = features.new_empty(shape, dtype=torch.int32), features.new_empty(size, dtype=torch.int32)
    return rows, features.new_empty(shape), structure


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[0], output[2])
    ctx.save_for_backward(inputs[0])


def _build_backward(
    ctx: Any, grad_rows: None, grad_weights: Tensor | None, grad_structure: None
) -> tuple[Tensor | None, None]:
    if grad_weights is None:
        return None, None
    return torch.ops.deeplab_crf.lattice_build_backward(grad_weights, *ctx.saved_tensors), None


def _embed_gradient(kernels: ModuleType, grad_weights: Tensor, features: Tensor) -> Tensor:
    type_suffix(features.dtype, "features")
    batch, points, dims = _check_features(features)
    check_shape(grad_weights, (batch, points, dims + 1), "grad_weights")
    check_like(grad_weights, features, "grad_weights", "features")
    result: Tensor = kernels.embed_gradient(grad_weights, features)
    return result


def _filter(
    kernels: ModuleType, values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor, transpose: bool = False
) -> Tensor:
    half = values.dtype in HALF_SUFFIXES and weights.dtype == torch.float32
    _check_values(kernels, values, rows, weights, structure, half=half)
    if values.shape[2] == 0:
        return torch.empty_like(values)
    result: Tensor = kernels.filter_values(values, (rows, weights, structure), transpose)
    return result


def _check_values(
    kernels: ModuleType, values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor, *, half: bool = False
) -> None:
    if values.ndim != 3:
        raise ValueError(f"values must have shape (B, N, C); got {tuple(values.shape)}")
    type_suffix(values.dtype, "values", half=half)
    (check_device if half else check_like)(values, weights, "values", "the lattice")
    check_lattice(kernels, rows, weights, structure, values.shape[0], values.shape[1])


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
        single = (tensor.to(lattice[1].dtype) for tensor in (grad, values))  # they may be half precision
        grad_weights = torch.ops.deeplab_crf.lattice_filter_weights_backward(*single, *lattice, ctx.transpose)
    return grad_values, None, grad_weights, None, None


def _filter_weights_gradient(
    kernels: ModuleType, grad: Tensor, values: Tensor, rows: Tensor, weights: Tensor, structure: Tensor, transpose: bool
) -> Tensor:
    _check_values(kernels, values, rows, weights, structure)
    check_shape(grad, values.shape, "grad")
    check_like(grad, values, "grad", "values")
    if values.shape[2] == 0:
        return torch.zeros_like(weights)
    result: Tensor = kernels.filter_weights_gradient(grad, values, (rows, weights, structure), transpose)
    return result


def _norm(
    kernels: ModuleType, rows: Tensor, weights: Tensor, structure: Tensor, mask: Tensor | None, root: bool
) -> Tensor:
    """``(s + epsilon)^-1``, or its root, with s = L(mask); times the mask."""
    type_suffix(weights.dtype, "weights")
    if mask is not None:
        check_shape(mask, rows.shape[:2], "mask")
        check_like(mask, weights, "mask", "the lattice")
    check_lattice(kernels, rows, weights, structure, rows.shape[0], rows.shape[1])
    result: Tensor = kernels.norm(mask, (rows, weights, structure), NORM_EPSILON, root)
    return result


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


register_operator(
    "lattice_build(Tensor features, int? max_vertices=None) -> (Tensor rows, Tensor weights, Tensor structure)",
    partial(_build, cpu),
    _build_fake,
    _build_backward,
    _save_features,
    partial(_build, cuda),
)
register_operator(
    "lattice_build_backward(Tensor grad_weights, Tensor features) -> Tensor",
    partial(_embed_gradient, cpu),
    lambda grad_weights, features: features.new_empty(features.shape),
    no_second_derivative("lattice_build"),
    cuda=partial(_embed_gradient, cuda),
)
register_operator(
    "lattice_filter(Tensor values, Tensor rows, Tensor weights, Tensor structure, bool transpose=False) -> Tensor",
    partial(_filter, cpu),
    _filter_fake,
    _filter_backward,
    _save_filter,
    partial(_filter, cuda),
)
register_operator(
    "lattice_filter_weights_backward(Tensor grad, Tensor values, Tensor rows, Tensor weights, Tensor "
    "structure, bool transpose) -> Tensor",
    partial(_filter_weights_gradient, cpu),
    lambda grad, values, rows, weights, structure, transpose: weights.new_empty(weights.shape),
    no_second_derivative("lattice_filter in the features of its lattice"),
    cuda=partial(_filter_weights_gradient, cuda),
)
register_operator(
    "lattice_norm(Tensor rows, Tensor weights, Tensor structure, Tensor? mask, bool root) -> Tensor",
    partial(_norm, cpu),
    lambda rows, weights, structure, mask, root: weights.new_empty(rows.shape[:2]),
    _norm_backward,
    _save_norm,
    partial(_norm, cuda),
)
