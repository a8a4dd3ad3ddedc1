"""Convolutions on CUDA: the native passes around the matrix products and convolutions of torch, which are cuBLAS's and cuDNN's.

Not yet measured on a GPU: which algorithm a call takes is a rule of thumb.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_crf.ops.conv.packed_weights import packed_on_device
from deeplab_crf.ops.conv.shapes import Geometry, Shape, is_channels_last, result_format
from deeplab_crf.ops.cuda_backend import Engine, engine_for, is_capturing
from deeplab_crf.ops.tensors import address, type_suffix

# Bytes of the matrices, in and out, that one call works on at a time.
WORKSPACE = 256 * 2**20

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Filters up to which products first, shifts afterwards, is taken for a sum of branches.
_FEW_FILTERS = 64


# ---------------------------------------------------------------------------------------------------------------------- choice
def choose_algorithm(x: Tensor, shape: Shape, policy: str) -> str:
    """Which of "torch" and "winograd". The latter only where it is forced: one input that is not finite spoils a whole tile, and
    to notice that one would have to wait for the device; and only where torch's matrix products are of full precision."""
    _, _, _, rows, columns = shape
    possible = all(axis[2] == 3 and axis[3] == 1 for axis in (rows, columns)) and x.dtype == torch.float32
    return "winograd" if policy == "winograd" and possible and not _rounds_products() else "torch"


def _rounds_products() -> bool:
    """Whether torch may round the factors of float32 matrix products to TF32, 11 bits."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision not in ("none", "ieee"))
    return bool(matmul.allow_tf32)  # torch before 2.9


def choose_sum(x: Tensor, taps: Taps, filters: int, policy: str) -> str:
    """Which of "shifted" and "each". float16 only where it is forced: the product of a single tap may exceed its range where the
    sum does not."""
    name, *forbidden = policy.split("-")
    if x.dtype not in DTYPES or len(taps.offsets) > engine_for(x).module.MAX_OFFSETS:
        return "each"
    if name != "auto":
        return "shifted" if name == "shifted" else "each"
    few = filters <= _FEW_FILTERS and x.dtype != torch.float16
    return "shifted" if few and "shifted" not in forbidden else "each"


# -------------------------------------------------------------------------------------------------------------------- epilogue
def by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Torch's convolution, then one pass for everything else."""
    out = torch.conv2d(x, weight, None, *geometry)
    layout = result_format(x, weight)
    out = out.contiguous(memory_format=layout)
    if out.numel() == 0 or not (relu or bias is not None or residual is not None):
        return out
    engine, (filters, height, width) = engine_for(out), out.shape[1:]
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    inner = 1 if layout == torch.channels_last else height * width
    engine.function(f"conv_epilogue_{type_suffix(out.dtype, 'x', half=True)}")(
        engine.queue, (out.numel(), filters, inner), address(out), (address(bias), address(residual), relu)
    )
    return out


# -------------------------------------------------------------------------------------------------------------------- Winograd
def winograd(
    owner: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, shape: Shape, relu: bool
) -> Tensor:
    """Native transforms, a batched product of torch between them. Tiles go through the workspace in as many turns as it takes.
    owner: the weight as the caller has it, see `packed_on_device`."""
    engine = engine_for(x)
    batch, channels, filters, rows, columns = shape
    out_shape = (batch, filters, rows[1], columns[1])
    out = torch.empty(out_shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel():
        row_size, column_size, tiles = engine.module.winograd_tiles(shape)
        matrices = (row_size + 2) * (column_size + 2)
        last = x.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
        weights = _winograd_weights(engine, owner, weight, shape, (row_size, column_size))
        most = min(tiles, max(1, WORKSPACE // (x.element_size() * matrices * (channels + filters))))
        for first in range(0, tiles, most):
            part = (first, min(most, tiles - first))
            inputs = torch.empty((matrices, part[1], channels), dtype=x.dtype, device=x.device)
            engine.module.winograd_inputs(engine.queue, shape, part, address(last), address(inputs))
            products = torch.bmm(inputs, weights)
            epilogue = (address(bias), address(residual), relu)
            engine.module.winograd_outputs(engine.queue, shape, part, address(products), epilogue, address(out))
    return out.contiguous(memory_format=result_format(x, weight))


def _winograd_weights(engine: Engine, owner: Tensor, weight: Tensor, shape: Shape, sizes: tuple[int, int]) -> Tensor:
    """(matrices, C, K)."""

    def make() -> Tensor:
        matrices = (sizes[0] + 2) * (sizes[1] + 2)
        out = torch.empty((matrices, shape[1], shape[2]), dtype=weight.dtype, device=weight.device)
        engine.module.winograd_weights(engine.queue, shape, address(weight), weight.stride(), address(out))
        return out

    return _packed(engine, [owner], [weight], ("winograd on CUDA", sizes), make)


def _packed(
    engine: Engine, owners: Sequence[Tensor], weights: Sequence[Tensor], layout: Hashable, make: Callable[[], Tensor]
) -> Tensor:
    """``make()``, or what it made before. While a CUDA graph is captured nothing is kept or taken: the graph computes it anew in
    each run, from what the weights then are."""
    return make() if is_capturing() else packed_on_device(owners, weights, layout, engine.queue, make)


# --------------------------------------------------------------------------------------------------------------------- shifted
class Taps(NamedTuple):
    """offsets: the distinct (dy, dx) of all branches that are shorter than the map, sorted. sources: of each, the (branch, ky, kx)
    that have it."""

    offsets: tuple[tuple[int, int], ...]
    sources: tuple[tuple[tuple[int, int, int], ...], ...]


def find_taps(weights: Sequence[Tensor], rates: Sequence[int], size: Sequence[int]) -> Taps:
    """Of branches that keep the size of the map, ``size``."""
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for branch, (weight, rate) in enumerate(zip(weights, rates, strict=True)):
        height, width = weight.shape[2:]
        for ky in range(height):
            for kx in range(width):
                offset = (rate * (ky - height // 2), rate * (kx - width // 2))
                if abs(offset[0]) < size[0] and abs(offset[1]) < size[1]:
                    found.setdefault(offset, []).append((branch, ky, kx))
    offsets = sorted(found)
    return Taps(tuple(offsets), tuple(tuple(found[offset]) for offset in offsets))


def shifted(
    owners: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], taps: Taps
) -> Tensor:
    """A product of torch, all pixels with all taps, and a native pass that shifts and adds. Images go through the workspace in as
    many turns as it takes. owners: the weights as the caller has them, see `packed_on_device`."""
    engine, suffix = engine_for(x), type_suffix(x.dtype, "x", half=True)
    (batch, _, height, width), filters = x.shape, weights[0].shape[0]
    layout = result_format(x, weights[0])
    out = torch.empty((batch, filters, height, width), dtype=x.dtype, device=x.device, memory_format=layout)
    if not out.numel():
        return out
    side_by_side = _packed(engine, owners, weights, ("shifted on CUDA", taps), lambda: _side_by_side(weights, taps))
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    bias = torch.stack(list(biases)).sum(dim=0, dtype=wide) if biases else None
    strides = (filters * height * width, 1, height * width)
    if layout == torch.channels_last:
        strides = (filters * height * width, filters, 1)
    most = max(1, WORKSPACE // (x.element_size() * height * width * side_by_side.shape[1]))
    for first in range(0, batch, most):
        images = x[first : first + most]
        products = _pixels_by(images, side_by_side)
        engine.function(f"gather_shifted_{suffix}")(
            engine.queue,
            (images.shape[0], height, width, filters),
            taps.offsets,
            address(products),
            address(bias),
            address(out[first:]),
            strides,
        )
    return out


def _side_by_side(weights: Sequence[Tensor], taps: Taps) -> Tensor:
    """(C, taps K). Taps of several branches with the same offset are one."""
    columns = [sum(weights[branch][:, :, ky, kx] for branch, ky, kx in sources) for sources in taps.sources]
    stacked: Tensor = torch.stack(columns)  # type: ignore[arg-type]  # sums of tensors, and none is empty
    return stacked.flatten(0, 1).t().contiguous()


def _pixels_by(images: Tensor, matrix: Tensor) -> Tensor:
    """(B, H W, N): every pixel of (B, C, H, W) times (C, N). Neither layout is copied."""
    pixels = images.flatten(2).transpose(1, 2)
    if is_channels_last(images) or images.shape[0] == 1:
        return torch.mm(pixels.flatten(0, 1), matrix)
    return torch.bmm(pixels, matrix.expand(images.shape[0], -1, -1))
