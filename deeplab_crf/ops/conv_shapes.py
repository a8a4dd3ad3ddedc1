"""Shapes of convolutions: what the arguments must be, in the words that torch has for it, and how the kernels are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A description of an axis for the kernels: in, out, kernel, stride, padding, dilation.
Axis = tuple[int, int, int, int, int, int]
# Batch, channels, filters, rows, columns.
Shape = tuple[int, int, int, Axis, Axis]


class Geometry(NamedTuple):
    """Pairs (rows, columns)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


def pair(value: int | Sequence[int], name: str) -> list[int]:
    """One number or two, as a list of two. Raises RuntimeError for anything else."""
    values = [value, value] if isinstance(value, int) else list(value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values, but got {name}={value}"
        )
    return values


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    """Raises RuntimeError where torch.nn.functional.conv2d would: for everything but the size of the output."""
    if weight.ndim != 4:
        raise RuntimeError(f"Expected 4D weight (K, C, kh, kw), but got weight of size: {list(weight.shape)}")
    if x.ndim != 4:
        raise RuntimeError(f"Expected 3D (unbatched) or 4D (batched) input, but got input of size: {list(x.shape)}")
    if min(weight.shape) == 0:
        raise RuntimeError(
            f"weight should have at least one element along each axis, but got size {list(weight.shape)}"
        )
    if x.shape[1] != weight.shape[1]:
        raise RuntimeError(
            f"Given groups=1, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have {weight.shape[1]} "
            f"channels, but got {x.shape[1]} channels instead"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise RuntimeError(
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {weight.shape[0]} elements, "
            f"but got bias of size {list(bias.shape)} instead"
        )
    _check_geometry(geometry)
    check_types(x, weight, "weight")
    if bias is not None:
        check_types(x, bias, "bias")


def _check_geometry(geometry: Geometry) -> None:
    if min(geometry.stride) <= 0:
        raise RuntimeError(f"non-positive stride is not supported, but got stride={list(geometry.stride)}")
    if min(geometry.padding) < 0:
        raise RuntimeError(f"negative padding is not supported, but got padding={list(geometry.padding)}")
    if min(geometry.dilation) <= 0:
        raise RuntimeError(f"dilation should be greater than zero, but got dilation={list(geometry.dilation)}")


def check_types(x: Tensor, other: Tensor, name: str) -> None:
    """Raises RuntimeError unless ``other`` is of the dtype and on the device of the input."""
    if x.dtype != other.dtype:
        raise RuntimeError(
            f"Input type ({x.dtype}) and {name} type ({other.dtype}) should be the same; convert one with .to()"
        )
    if x.device != other.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but input is on {x.device} and {name} on {other.device}"
        )


def output_size(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> list[int]:
    """Rows and columns of the result. Raises RuntimeError where there would be none."""
    padded = [n + 2 * p for n, p in zip(x.shape[2:], geometry.padding, strict=True)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, geometry.dilation, strict=True)]
    if any(r > n for r, n in zip(reach, padded, strict=True)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: ({reach[0]} x {reach[1]}), "
            "dilation included. Kernel size can't be greater than actual input size"
        )
    return [(n - r) // s + 1 for n, r, s in zip(padded, reach, geometry.stride, strict=True)]


def check_residual(x: Tensor, residual: Tensor | None, shape: Sequence[int]) -> None:
    """Raises RuntimeError unless ``residual`` is of the result's shape."""
    if residual is None:
        return
    if tuple(residual.shape) != tuple(shape):
        raise RuntimeError(
            f"expected residual to have the size of the output, {list(shape)}, but got residual of size {list(residual.shape)}"
        )
    check_types(x, residual, "residual")


def kernel_shape(x: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry) -> Shape:
    """The description that the kernels take; ``size``: of the output."""
    rows, columns = (
        (x.shape[i + 2], size[i], weight.shape[i + 2], geometry.stride[i], geometry.padding[i], geometry.dilation[i])
        for i in (0, 1)
    )
    return (x.shape[0], x.shape[1], weight.shape[0], rows, columns)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether channels lie next to each other, and nothing else could be meant."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def result_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """That of the input; channels_last too where the weight is, as in torch."""
    last = is_channels_last(x) or is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format
