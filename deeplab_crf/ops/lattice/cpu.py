"""Lattices on the CPU: the kernels behind the operators of ops/lattice/operators.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.ops.tensors import address, type_suffix
from deeplab_crf.runtime.workspace import borrowed_parts


def build(features: Tensor, max_vertices: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Operator lattice_build."""
    suffix = type_suffix(features.dtype, "features")
    batch, points, dims = features.shape
    builder = getattr(_native, f"LatticeBatch{suffix.upper()}")(
        address(features), tuple(features.shape), tuple(features.stride()), torch.get_num_threads()
    )
    rows = torch.empty((batch, points, dims + 1), dtype=torch.int32)
    weights = torch.empty(rows.shape, dtype=features.dtype)
    builder.embed(address(rows), address(weights))
    structure = torch.empty(builder.structure_size, dtype=torch.int32)
    builder.connect(address(rows), address(structure))
    vertices = sum(vertices_of(rows, structure))
    if max_vertices is not None and vertices > max_vertices:
        raise ValueError(
            f"max_vertices must not be less than the vertices that the features touch; got {max_vertices}, and there are "
            f"{vertices}. Give a larger bound, or none: memory then follows the true number"
        )
    return rows, weights, structure


def embed_gradient(grad_weights: Tensor, features: Tensor) -> Tensor:
    """Operator lattice_build_backward."""
    grad_weights = grad_weights.contiguous()
    result = torch.empty(features.shape, dtype=features.dtype)
    getattr(_native, f"lattice_embed_gradient_{type_suffix(features.dtype, 'features')}")(
        address(features),
        tuple(features.shape),
        tuple(features.stride()),
        address(grad_weights),
        address(result),
        torch.get_num_threads(),
    )
    return result


def check_lattice(rows: Tensor, structure: Tensor) -> None:
    """Raises unless rows and structure come from one build."""
    points, dims, vertices = _native.lattice_sizes(address(structure), structure.numel())
    if tuple(rows.shape) != (len(vertices), points, dims + 1):
        raise ValueError(
            f"rows and structure must come from one lattice_build; got rows of shape {tuple(rows.shape)} and a structure for "
            f"{(len(vertices), points, dims + 1)}"
        )


def vertices_of(rows: Tensor, structure: Tensor) -> list[int]:
    """Number of vertices of each image."""
    return list(_native.lattice_sizes(address(structure), structure.numel())[2])


def header_of(structure: Tensor) -> Tensor:
    """Nothing for `check_header`."""
    return structure.new_empty(0)


def check_header(header: Tensor) -> None:
    """Nothing: `build` looked at everything."""


def checked_lattices(rows: Tensor, weights: Tensor, structure: Tensor) -> Any:
    """The three tensors as the kernels take them, for one call: what decides where they read and write is copied and then checked,
    because another thread may write to the tensors meanwhile."""
    suffix = type_suffix(weights.dtype, "weights").upper()
    return getattr(_native, f"CheckedLattices{suffix}")(
        address(rows), rows.numel(), address(weights), address(structure), structure.numel()
    )


def filter_values(values: Tensor, lattice: Sequence[Tensor], transpose: bool) -> Tensor:
    """Operator lattice_filter for values ``(B, N, C)``, C > 0. Half-precision values are filtered in the lattice's dtype."""
    if values.dtype != lattice[1].dtype:
        return filter_values(values.to(lattice[1].dtype), lattice, transpose).to(values.dtype)
    suffix, channels, threads = type_suffix(values.dtype, "values"), values.shape[2], torch.get_num_threads()
    values = values.contiguous()
    out = torch.empty_like(values)
    checked = checked_lattices(*lattice)
    size = getattr(_native, f"lattice_filter_workspace_{suffix}")(checked, channels, threads)
    with borrowed_parts([size * values.itemsize]) as (workspace,):
        getattr(_native, f"lattice_filter_{suffix}")(
            checked,
            address(values),
            address(out),
            channels,
            workspace,
            transpose,
            threads,
        )
    return out


def filter_weights_gradient(grad: Tensor, values: Tensor, lattice: Sequence[Tensor], transpose: bool) -> Tensor:
    """Operator lattice_filter_weights_backward for grad and values ``(B, N, C)``, C > 0."""
    suffix, channels, threads = type_suffix(values.dtype, "values"), values.shape[2], torch.get_num_threads()
    grad, values = grad.contiguous(), values.contiguous()
    out = torch.empty_like(lattice[1])
    checked = checked_lattices(*lattice)
    size = 2 * getattr(_native, f"lattice_filter_workspace_{suffix}")(checked, channels, threads)
    with borrowed_parts([size * values.itemsize]) as (workspace,):
        getattr(_native, f"lattice_filter_weight_gradient_{suffix}")(
            checked,
            address(values),
            address(grad),
            address(out),
            channels,
            workspace,
            transpose,
            threads,
        )
    return out


def norm(mask: Tensor | None, lattice: Sequence[Tensor], epsilon: float, root: bool) -> Tensor:
    """Operator lattice_norm. On NumPy, like ops/cpu/features.py."""
    rows, weights, _ = lattice
    values = torch.from_numpy(np.ones(rows.shape[:2], weights.numpy().dtype)) if mask is None else mask
    result = filter_values(values[..., None], lattice, False)[..., 0]
    sums = result.numpy()
    sums += sums.dtype.type(epsilon)
    np.reciprocal(sums, out=sums)
    if root:
        np.sqrt(sums, out=sums)
    if mask is not None:
        sums *= mask.numpy()
    return result
