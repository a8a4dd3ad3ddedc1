"""The convolution operators on CUDA: native passes around torch's matrix products and convolutions.

Not yet measured on a GPU: the choice of the algorithm is a rule of thumb.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_crf.ops.conv import composite
from deeplab_crf.ops.conv.algorithms import MAX_SUM_FILTERS, Policy
from deeplab_crf.ops.conv.packed_weights import packed_on_device
from deeplab_crf.ops.conv.shapes import (
    Geometry,
    Shape,
    check_convolution,
    check_sum,
    is_channels_last,
    make_geometry,
    result_format,
)
from deeplab_crf.ops.cuda_backend import Engine, engine_for, is_capturing
from deeplab_crf.ops.tensors import address, alias, type_suffix

# Most bytes of the matrices, in and out, that one call works on at a time.
WORKSPACE = 256 * 2**20

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    relu: bool,
    policy: int,
) -> Tensor:
    """Compute the operator ``dilated_conv2d``."""
    geometry, owner = make_geometry(stride, padding, dilation), weight
    x, weight = alias(x, "input"), alias(weight, "weight")
    bias = None if bias is None else alias(bias, "bias")
    residual = None if residual is None else alias(residual, "residual")
    shape = check_convolution(x, weight, bias, residual, geometry)
    if find_algorithm(x, shape, policy) == "winograd":
        return _winograd(owner, x, weight, bias, residual, shape, relu)
    convolve = torch_conv2d if x.dtype in DTYPES else composite.torch_conv2d
    return convolve(x, weight, bias, residual, geometry, relu)


def aspp_sum(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: int
) -> Tensor:
    """Compute the operator ``aspp_sum``."""
    image, kernels = alias(x, "input"), [alias(weight, "weight") for weight in weights]
    shifts = [alias(bias, "bias") for bias in biases]
    geometries, _ = check_sum(image, kernels, shifts, rates)
    taps = find_taps(kernels, rates, image.shape[2:])
    if is_sum_shifted(image, taps, kernels[0].shape[0], policy):
        return _shifted(weights, image, kernels, shifts, taps)
    return composite.sum_branch_by_branch(x, weights, biases, geometries, policy)


def find_algorithm(x: Tensor, shape: Shape, policy: int) -> str:
    """Return "torch" or "winograd".

    "winograd" only where it is forced: one input that is not finite spoils a whole tile, and noticing
    that would need to wait for the device. And only where torch's products have full precision.
    """
    forced = bool(policy & Policy.FORCED and policy & Policy.WINOGRAD)
    possible = forced and shape.is_winograd and x.dtype == torch.float32
    return "winograd" if possible and not _rounds_products() else "torch"


def _rounds_products() -> bool:
    """Return whether torch may round the factors of float32 matrix products to TF32, 11 bits."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision not in ("none", "ieee"))
    return bool(matmul.allow_tf32)  # torch before 2.9


def is_sum_shifted(x: Tensor, taps: Taps, filters: int, policy: int) -> bool:
    """Return whether `aspp_sum` takes "shifted", or else computes branch by branch.

    float16 only where it is forced: the product of one tap may exceed its range where the sum does not.
    """
    possible = x.dtype in DTYPES and len(taps.offsets) <= engine_for(x).module.MAX_OFFSETS
    if not possible or not policy & Policy.SHIFTED:
        return False
    return bool(policy & Policy.FORCED) or (filters <= MAX_SUM_FILTERS and x.dtype != torch.float16)


def torch_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Compute torch's convolution, then the epilogue in one native pass."""
    out = torch.conv2d(x, weight, None, *geometry)
    layout = result_format(x, weight)
    out = out.contiguous(memory_format=layout)
    if out.numel() == 0 or not (relu or bias is not None or residual is not None):
        return out
    engine, (filters, height, width) = engine_for(out), out.shape[1:]
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    engine.function(f"conv_epilogue_{type_suffix(out.dtype, 'x', half=True)}")(
        engine.queue,
        address(out),
        address(bias),
        address(residual),
        relu,
        count=out.numel(),
        channels=filters,
        inner=1 if layout == torch.channels_last else height * width,
    )
    return out


def _winograd(
    owner: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, shape: Shape, relu: bool
) -> Tensor:
    """Transform natively, with torch's batched product in between; tiles go through the workspace part by part."""
    engine = engine_for(x)
    out = torch.empty(shape.output, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel():
        *sizes, tiles = engine.module.winograd_tiles(shape)
        matrices = (sizes[0] + 2) * (sizes[1] + 2)
        last = x.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
        epilogue = (address(bias), address(residual), relu)

        def transform_weights() -> Tensor:
            made = torch.empty((matrices, shape.channels, shape.filters), dtype=weight.dtype, device=weight.device)
            engine.module.winograd_weights(engine.queue, shape, address(weight), weight.stride(), address(made))
            return made

        weights = _packed(engine, [owner], [weight], ("winograd on CUDA", *sizes), transform_weights)
        most = min(tiles, max(1, WORKSPACE // (x.element_size() * matrices * (shape.channels + shape.filters))))
        for first in range(0, tiles, most):
            count = min(most, tiles - first)
            inputs = torch.empty((matrices, count, shape.channels), dtype=x.dtype, device=x.device)
            engine.module.winograd_inputs(engine.queue, shape, first, count, address(last), address(inputs))
            products = torch.bmm(inputs, weights)
            engine.module.winograd_outputs(engine.queue, shape, first, count, address(products), epilogue, address(out))
    return out.contiguous(memory_format=result_format(x, weight))


def _packed(
    engine: Engine, owners: Sequence[Tensor], weights: Sequence[Tensor], layout: Hashable, make: Callable[[], Tensor]
) -> Tensor:
    """Return ``make()`` or its cached result.

    A captured CUDA graph must compute it in each replay from the weights of that time: no cache then.
    """
    return make() if is_capturing() else packed_on_device(owners, weights, layout, engine.queue, make)


class Taps(NamedTuple):
    """The taps of a sum of branches, by their offsets.

    Attributes:
        offsets: The distinct (dy, dx) of all branches that are shorter than the map, sorted.
        sources: For each offset, the (branch, ky, kx) that have it.
    """

    offsets: tuple[tuple[int, int], ...]
    sources: tuple[tuple[tuple[int, int, int], ...], ...]


def find_taps(weights: Sequence[Tensor], rates: Sequence[int], size: Sequence[int]) -> Taps:
    """Return the taps of branches that keep the size of the map, ``size``."""
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


def _shifted(
    owners: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], taps: Taps
) -> Tensor:
    """Multiply all pixels with all taps by torch, then shift and add natively, as many images at a time as fit."""
    engine, suffix = engine_for(x), type_suffix(x.dtype, "x", half=True)
    (batch, _, height, width), filters = x.shape, weights[0].shape[0]
    layout = result_format(x, weights[0])
    out = torch.empty((batch, filters, height, width), dtype=x.dtype, device=x.device, memory_format=layout)
    if not out.numel():
        return out
    side_by_side = _packed(engine, owners, weights, ("shifted on CUDA", taps), lambda: _side_by_side(weights, taps))
    sum_dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    bias = torch.stack(list(biases)).sum(dim=0, dtype=sum_dtype) if biases else None
    most = max(1, WORKSPACE // (x.element_size() * height * width * side_by_side.shape[1]))
    for first in range(0, batch, most):
        images = x[first : first + most]
        products = _multiply_pixels(images, side_by_side)
        engine.function(f"gather_shifted_{suffix}")(
            engine.queue,
            address(products),
            address(bias),
            address(out[first:]),
            taps.offsets,
            batch=images.shape[0],
            height=height,
            width=width,
            classes=filters,
            channels_last=layout == torch.channels_last,
        )
    return out


def _side_by_side(weights: Sequence[Tensor], taps: Taps) -> Tensor:
    """Return the weights as (C, taps K); taps with the same offset are added."""
    columns = [sum(weights[branch][:, :, ky, kx] for branch, ky, kx in sources) for sources in taps.sources]
    stacked: Tensor = torch.stack(columns)  # type: ignore[arg-type]  # sums of tensors, and none is empty
    return stacked.flatten(0, 1).t().contiguous()


def _multiply_pixels(images: Tensor, matrix: Tensor) -> Tensor:
    """Return (B, H W, N), the pixels of (B, C, H, W) times (C, N), without copying either layout."""
    pixels = images.flatten(2).transpose(1, 2)
    if is_channels_last(images) or images.shape[0] == 1:
        return torch.mm(pixels.flatten(0, 1), matrix)
    return torch.bmm(pixels, matrix.expand(images.shape[0], -1, -1))
