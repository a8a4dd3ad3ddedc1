"""Shapes of convolutions: checks of the arguments, in torch's wording, and descriptions for the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

# The size of a tensor.
Size = Sequence[int]


class Axis(NamedTuple):
    """One axis of a convolution, as the native functions take it."""

    size_in: int
    size_out: int
    kernel: int
    stride: int
    padding: int
    dilation: int


class Shape(NamedTuple):
    """A convolution, as the native functions take it."""

    batch: int
    channels: int
    filters: int
    rows: Axis
    columns: Axis

    @property
    def output(self) -> tuple[int, int, int, int]:
        """The size (B, K, OH, OW) of the result."""
        return self.batch, self.filters, self.rows.size_out, self.columns.size_out

    @property
    def is_empty(self) -> bool:
        """Whether the result has no elements."""
        return 0 in self.output

    @property
    def is_winograd(self) -> bool:
        """Whether Winograd's algorithm can compute it: 3x3 with stride 1."""
        return all(axis.kernel == 3 and axis.stride == 1 for axis in (self.rows, self.columns))


class Geometry(NamedTuple):
    """Pairs (rows, columns) in hashable form."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def make_geometry(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Geometry:
    """Make a geometry from any sequences."""
    return Geometry(tuple(stride), tuple(padding), tuple(dilation))


def pair(value: int | Sequence[int], name: str) -> list[int]:
    """Return one integer or two, NumPy's too, as a list of two.

    Raises:
        RuntimeError: ``value`` is anything else.
    """
    values = list(value) if isinstance(value, Sequence) else [value]
    values = [int(v) if isinstance(v, Integral) else v for v in values]
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values, but got {name}={value}"
        )
    return values


def convolution_shape(x: Size, weight: Size, bias: Size | None, residual: Size | None, geometry: Geometry) -> Shape:
    """Return the shape of the convolution of tensors with these sizes.

    Raises:
        RuntimeError: torch.nn.functional.conv2d would raise one, or the residual has not the size of the output.
    """
    _check_sizes(x, weight, bias)
    _check_geometry(geometry)
    size = output_size(x[2:], weight[2:], geometry)
    expected = (x[0], weight[0], *size)
    if residual is not None and tuple(residual) != expected:
        raise RuntimeError(
            f"expected residual to have the size of the output, {list(expected)}, but got residual of size {list(residual)}"
        )
    rows, columns = (
        Axis(x[i + 2], size[i], weight[i + 2], geometry.stride[i], geometry.padding[i], geometry.dilation[i])
        for i in (0, 1)
    )
    return Shape(x[0], x[1], weight[0], rows, columns)


@lru_cache(maxsize=4096)
def known_shape(x: Size, weight: Size, bias: Size | None, residual: Size | None, geometry: Geometry) -> Shape:
    """Return `convolution_shape` from a cache: 1.4 us with the check of types instead of 5.4.

    Takes numbers only, not a compiler's symbols.

    Raises:
        RuntimeError: As `convolution_shape`, or the output has more elements than can be counted.
    """
    shape = convolution_shape(x, weight, bias, residual, geometry)
    if math.prod(shape.output) >= 2**60:
        raise RuntimeError(f"expected an output that fits into memory, but its size would be {list(shape.output)}")
    return shape


def _check_sizes(x: Size, weight: Size, bias: Size | None) -> None:
    if len(weight) != 4:
        raise RuntimeError(f"Expected 4D weight (K, C, kh, kw), but got weight of size: {list(weight)}")
    if len(x) != 4:
        raise RuntimeError(f"Expected 3D (unbatched) or 4D (batched) input, but got input of size: {list(x)}")
    if 0 in x[2:]:
        raise RuntimeError(f"Only zero batch inputs are supported, but got input shape: {list(x)}")
    if min(weight) == 0:
        raise RuntimeError(f"weight should have at least one element along each axis, but got size {list(weight)}")
    if x[1] != weight[1]:
        raise RuntimeError(
            f"Given groups=1, weight of size {list(weight)}, expected input{list(x)} to have {weight[1]} "
            f"channels, but got {x[1]} channels instead"
        )
    if bias is not None and tuple(bias) != (weight[0],):
        raise RuntimeError(
            f"Given weight of size {list(weight)}, expected bias to be 1-dimensional with {weight[0]} elements, "
            f"but got bias of size {list(bias)} instead"
        )


def _check_geometry(geometry: Geometry) -> None:
    if min(geometry.stride) <= 0:
        raise RuntimeError(f"non-positive stride is not supported, but got stride={list(geometry.stride)}")
    if min(geometry.padding) < 0:
        raise RuntimeError(f"negative padding is not supported, but got padding={list(geometry.padding)}")
    if min(geometry.dilation) <= 0:
        raise RuntimeError(f"dilation should be greater than zero, but got dilation={list(geometry.dilation)}")


def output_size(size: Size, kernel: Size, geometry: Geometry) -> list[int]:
    """Return (OH, OW) for an input of ``size`` (H, W).

    Raises:
        RuntimeError: The kernel is larger than the padded input.
    """
    padded = [n + 2 * p for n, p in zip(size, geometry.padding, strict=True)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, geometry.dilation, strict=True)]
    if any(r > n for r, n in zip(reach, padded, strict=True)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: ({reach[0]} x {reach[1]}), "
            "dilation included. Kernel size can't be greater than actual input size"
        )
    return [(n - r) // s + 1 for n, r, s in zip(padded, reach, geometry.stride, strict=True)]


def check_types(x: Tensor, other: Tensor | None, name: str) -> None:
    """Check that ``other``, unless it is None, has the dtype and the device of the input.

    Raises:
        RuntimeError: It has not.
    """
    if other is None:
        return
    if x.dtype != other.dtype:
        raise RuntimeError(
            f"Input type ({x.dtype}) and {name} type ({other.dtype}) should be the same; convert one with .to()"
        )
    if x.device != other.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but input is on {x.device} and {name} on {other.device}"
        )


def check_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    find: Callable[..., Shape] = known_shape,
) -> Shape:
    """Check the arguments of `dilated_conv2d` and return the shape.

    Args:
        x: (B, C, H, W).
        weight: (K, C, kh, kw).
        bias: (K) or None.
        residual: Of the size of the result, or None.
        geometry: Stride, padding, dilation.
        find: `known_shape`, or `convolution_shape` where sizes may be symbols.

    Raises:
        RuntimeError: Sizes, dtypes or devices do not fit.
    """
    sizes = (None if tensor is None else tensor.shape for tensor in (bias, residual))
    shape = find(x.shape, weight.shape, *sizes, geometry)
    check_types(x, weight, "weight")
    check_types(x, bias, "bias")
    check_types(x, residual, "residual")
    return shape


def branch_geometries(weights: Sequence[Tensor], rates: Sequence[int]) -> list[Geometry]:
    """Return the geometry of each branch of `aspp_sum`, which keeps the size of the input.

    Raises:
        RuntimeError: A weight is not of four axes with an odd kernel size.
    """
    geometries = []
    for weight, rate in zip(weights, rates, strict=True):
        if weight.ndim != 4 or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise RuntimeError(
                f"expected 4D weights with an odd kernel size, but got weight of size: {list(weight.shape)}"
            )
        padding = [rate * (size - 1) // 2 for size in weight.shape[2:]]
        geometries.append(make_geometry([1, 1], padding, [rate, rate]))
    return geometries


def check_sum(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    rates: Sequence[int],
    find: Callable[..., Shape] = known_shape,
) -> tuple[list[Geometry], list[Shape]]:
    """Check the arguments of `aspp_sum` and return the geometry and the shape of each branch.

    Raises:
        RuntimeError: As `check_convolution`, or the weights differ in their number of filters.
    """
    geometries = branch_geometries(weights, rates)
    shapes = []
    for i, (weight, geometry) in enumerate(zip(weights, geometries, strict=True)):
        shapes.append(check_convolution(x, weight, biases[i] if biases else None, None, geometry, find))
        if weight.shape[0] != weights[0].shape[0]:
            raise RuntimeError(
                f"expected all weights to have {weights[0].shape[0]} filters, but got weight of size {list(weight.shape)}"
            )
    return geometries, shapes


def is_lowered(tensor: Tensor) -> bool:
    """Return whether autocast lowers the precision of this argument of a convolution: not of float64."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def result_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a convolution of ``x``, honouring autocast."""
    kind = x.device.type
    lowered = kind in ("cpu", "cuda") and is_lowered(x) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lowered else x.dtype


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether the layout is channels_last and could not be read as contiguous as well."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def result_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the layout of the result: channels_last if the input or the weight has it, as in torch."""
    last = is_channels_last(x) or is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format
