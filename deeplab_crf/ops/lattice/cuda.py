"""Lattices on CUDA: the kernels behind the operators of ops/lattice/operators.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplab_crf.ops.cuda_backend import Engine, engine_for
from deeplab_crf.ops.tensors import address, type_suffix

# A key of one word has ten bits a coordinate up to here: enough for photographs, and for clouds of points that span a thousand
# standard deviations. Counts only where nothing may be read back.
_DIMENSIONS_A_WORD = 6


def build(features: Tensor, max_vertices: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Operator lattice_build. Waits for the device once, to read the number of vertices; not at all if it is bounded."""
    engine, suffix = engine_for(features), type_suffix(features.dtype, "features")
    described = _describe(features)
    batch, points, dims = features.shape
    rows = torch.empty((batch, points, dims + 1), dtype=torch.int32, device=features.device)
    weights = torch.empty_like(rows, dtype=features.dtype)
    bound = 0 if max_vertices is None else max_vertices
    key_words = _bounded_key_words(engine, dims) if bound else engine.module.KEY_WORDS[0]
    while True:
        size = engine.function(f"lattice_build_workspace_{suffix}")(engine.queue, described[1], key_words, bound)
        workspace = torch.empty(size, dtype=torch.uint8, device=features.device)
        built = (key_words, bound, address(workspace))
        engine.function(f"lattice_embed_{suffix}")(engine.queue, described, address(rows), address(weights), built)
        if bound:
            capacity = bound
            break
        header = workspace[: 4 * engine.module.HEADER_SIZE].cpu()
        capacity, needed = engine.module.check_header(address(header), 0)
        if needed <= key_words:
            break
        key_words = min(words for words in engine.module.KEY_WORDS if words >= needed)
    size = engine.module.structure_size(described[1], capacity)
    structure = torch.empty(size, dtype=torch.int32, device=features.device)
    engine.function(f"lattice_connect_{suffix}")(
        engine.queue, described, address(rows), address(structure), capacity, built
    )
    return rows, weights, structure


def _bounded_key_words(engine: Engine, dims: int) -> int:
    wanted = -(-dims // _DIMENSIONS_A_WORD)
    return int(
        min((words for words in engine.module.KEY_WORDS if words >= wanted), default=engine.module.KEY_WORDS[-1])
    )


def _describe(features: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return address(features), tuple(features.shape), features.stride()


def embed_gradient(grad_weights: Tensor, features: Tensor) -> Tensor:
    """Operator lattice_build_backward."""
    engine = engine_for(features)
    grad_weights = grad_weights.contiguous()
    result = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    size = engine.module.lattice_embed_gradient_workspace(features.shape[0], features.shape[2])
    workspace = torch.empty(size, dtype=torch.uint8, device=features.device)
    engine.function(f"lattice_embed_gradient_{type_suffix(features.dtype, 'features')}")(
        engine.queue, _describe(features), address(grad_weights), address(result), address(workspace)
    )
    return result


def check_lattice(rows: Tensor, structure: Tensor) -> None:
    """Raises unless the length of ``structure`` is that of a lattice with these rows: what can be told without reading it."""
    engine_for(rows).module.image_begin(shape_of(rows), structure.numel())


def shape_of(rows: Tensor) -> tuple[int, int, int]:
    """(B, N, d) of a lattice's rows."""
    batch, points, corners = rows.shape
    return batch, points, corners - 1


def lattice_fields(lattice: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """A lattice as the native functions take it."""
    rows, weights, structure = lattice
    return address(rows), address(weights), address(structure), structure.numel()


def header_of(structure: Tensor) -> Tensor:
    """What tells whether a bounded build succeeded: a copy on the device."""
    return structure[: engine_for(structure).module.HEADER_SIZE].clone()


def check_header(header: Tensor) -> None:
    """header: a structure or its `header_of`. Waits for the device. Raises ValueError if features were not finite or too large, or
    needed more vertices or wider keys than there was room for."""
    module = engine_for(header).module
    host = header[: module.HEADER_SIZE].cpu()
    module.check_header(address(host), 0)


def vertices_of(rows: Tensor, structure: Tensor) -> list[int]:
    """Number of vertices of each image. Waits for the device."""
    check_header(structure)
    begin = engine_for(rows).module.image_begin(shape_of(rows), structure.numel())
    counts: list[int] = structure[begin : begin + rows.shape[0] + 1].cpu().diff().tolist()
    return counts


def filter_workspace(engine: Engine, lattice: Sequence[Tensor], channels: int, filters: int = 1) -> Tensor:
    """Memory for the rows of so many filters."""
    rows, weights, structure = lattice
    suffix = type_suffix(weights.dtype, "weights")
    size = engine.function(f"lattice_filter_workspace_{suffix}")(shape_of(rows), structure.numel(), channels)
    return torch.empty(filters * size, dtype=weights.dtype, device=weights.device)


def filter_values(values: Tensor, lattice: Sequence[Tensor], transpose: bool) -> Tensor:
    """Operator lattice_filter for values ``(B, N, C)``, C > 0. Half-precision values are read and written as such; sums and rows of
    the lattice are in its dtype."""
    engine, channels = engine_for(values), values.shape[2]
    values = values.contiguous()
    out = torch.empty_like(values)
    workspace = filter_workspace(engine, lattice, channels)
    engine.function(f"lattice_filter_{type_suffix(values.dtype, 'values', half=True)}")(
        engine.queue,
        lattice_fields(lattice),
        shape_of(lattice[0]),
        address(values),
        address(out),
        channels,
        address(workspace),
        transpose,
    )
    return out


def filter_weights_gradient(grad: Tensor, values: Tensor, lattice: Sequence[Tensor], transpose: bool) -> Tensor:
    """Operator lattice_filter_weights_backward for grad and values ``(B, N, C)``, C > 0."""
    engine, channels = engine_for(values), values.shape[2]
    grad, values = grad.contiguous(), values.contiguous()
    out = torch.empty_like(lattice[1])
    workspace = filter_workspace(engine, lattice, channels, filters=2)
    engine.function(f"lattice_filter_weight_gradient_{type_suffix(values.dtype, 'values')}")(
        engine.queue,
        lattice_fields(lattice),
        shape_of(lattice[0]),
        (address(values), address(grad)),
        address(out),
        channels,
        address(workspace),
        transpose,
    )
    return out


def norm(mask: Tensor | None, lattice: Sequence[Tensor], epsilon: float, root: bool) -> Tensor:
    """Operator lattice_norm: a filter, and torch for what is left."""
    rows, weights, _ = lattice
    values = weights.new_ones(rows.shape[:2]) if mask is None else mask
    sums = filter_values(values[..., None], lattice, False)[..., 0]
    sums.add_(epsilon).reciprocal_()
    if root:
        sums.sqrt_()
    return sums if mask is None else sums.mul_(mask)
