"""Shapes of convolutions: what the arguments must be, in the words that torch has for it, and how the kernels are told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

# A description of an axis for the kernels: in, out, kernel, stride, padding, dilation.
Axis = tuple[int, int, int, int, int, int]
# Batch, channels, filters, rows, columns.
Shape = tuple[int, int, int, Axis, Axis]
# Of a tensor.
Size = Sequence[int]


class Geometry(NamedTuple):
    """Pairs (rows, columns), of what can be hashed."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def make_geometry(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Geometry:
    """From any sequences."""
    return Geometry(tuple(stride), tuple(padding), tuple(dilation))


def pair(value: int | Sequence[int], name: str) -> list[int]:
    """One integer or two, NumPy's too, as a list of two. Raises RuntimeError for anything else."""
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
    """What the kernels are told, the size of the output in it. Takes sizes of tensors; raises RuntimeError where
    torch.nn.functional.conv2d would for them, and for a residual that has not the size of the output."""
    _check_sizes(x, weight, bias)
    _check_geometry(geometry)
    size = _output_size(x, weight[2:], geometry)
    expected = (x[0], weight[0], *size)
    if residual is not None and tuple(residual) != expected:
        raise RuntimeError(
            f"expected residual to have the size of the output, {list(expected)}, but got residual of size {list(residual)}"
        )
    rows, columns = (
        (x[i + 2], size[i], weight[i + 2], geometry.stride[i], geometry.padding[i], geometry.dilation[i])
        for i in (0, 1)
    )
    return (x[0], x[1], weight[0], rows, columns)


@lru_cache(maxsize=4096)
def known_shape(x: Size, weight: Size, bias: Size | None, residual: Size | None, geometry: Geometry) -> Shape:
    """The same, found once: 1.4 us with the types instead of 5.4. Of numbers alone, not of a compiler's symbols. Raises
    RuntimeError also for an output of more elements than can be counted."""
    shape = convolution_shape(x, weight, bias, residual, geometry)
    if math.prod(output_shape(shape)) >= 2**60:
        raise RuntimeError(
            f"expected an output that fits into memory, but its size would be {list(output_shape(shape))}"
        )
    return shape


def output_shape(shape: Shape) -> tuple[int, int, int, int]:
    """(B, K, OH, OW)."""
    batch, _, filters, rows, columns = shape
    return batch, filters, rows[1], columns[1]


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


def _output_size(x: Size, kernel: Size, geometry: Geometry) -> list[int]:
    padded = [n + 2 * p for n, p in zip(x[2:], geometry.padding, strict=True)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, geometry.dilation, strict=True)]
    if any(r > n for r, n in zip(reach, padded, strict=True)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: ({reach[0]} x {reach[1]}), "
            "dilation included. Kernel size can't be greater than actual input size"
        )
    return [(n - r) // s + 1 for n, r, s in zip(padded, reach, geometry.stride, strict=True)]


def check_types(x: Tensor, other: Tensor | None, name: str) -> None:
    """Raises RuntimeError unless ``other``, if there is one, is of the dtype and on the device of the input."""
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


def is_lowered(tensor: Tensor) -> bool:
    """Whether autocast lowers the precision of a convolution's argument: float64 stays."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def result_dtype(x: Tensor) -> torch.dtype:
    """Of a convolution of ``x``, under autocast or not."""
    kind = x.device.type
    lowered = kind in ("cpu", "cuda") and is_lowered(x) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lowered else x.dtype


def is_channels_last(tensor: Tensor) -> bool:
    """Whether channels lie next to each other, and nothing else could be meant."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def result_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """That of the input; channels_last too where the weight is, as in torch."""
    last = is_channels_last(x) or is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format
