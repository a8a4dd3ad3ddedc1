"""The convolution operators on the CPU: kernels of our own for float32, else torch's convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.ops.conv import composite
from deeplab_crf.ops.conv.algorithms import choose_algorithm, is_sum_shifted
from deeplab_crf.ops.conv.packed_weights import packed_weights
from deeplab_crf.ops.conv.shapes import (
    Geometry,
    Shape,
    check_convolution,
    check_sum,
    is_channels_last,
    make_geometry,
    result_format,
)
from deeplab_crf.ops.tensors import address, alias, check_unchanged, empty_rows
from deeplab_crf.runtime.workspace import borrowed_parts


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
    geometry = make_geometry(stride, padding, dilation)
    shape = check_convolution(x, weight, bias, residual, geometry)
    if x.dtype == torch.float32:
        algorithm = find_algorithm(x, shape, policy)
        if algorithm != "torch":
            owner = weight
            x, weight = alias(x, "input"), alias(weight, "weight")
            bias = None if bias is None else alias(bias, "bias")
            residual = None if residual is None else alias(residual, "residual")
            check_unchanged(check_convolution(x, weight, bias, residual, geometry), shape)
            call = _Call(x, weight, bias, residual, shape)
            compute = _direct if algorithm == "direct" else _winograd
            if compute(owner, weight, call, relu):
                return call.result()
            # A value is not finite, which spoils a whole tile: torch decides which outputs are not finite.
    return torch_conv2d(x, weight, bias, residual, geometry, relu)


def aspp_sum(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: int
) -> Tensor:
    """Compute the operator ``aspp_sum``."""
    if x.dtype != torch.float32 or x.numel() == 0:
        geometries, _ = check_sum(x, weights, biases, rates)
        return composite.sum_branch_by_branch(x, weights, biases, geometries, policy)
    image, kernels = alias(x, "input"), [alias(weight, "weight") for weight in weights]
    shifts = [alias(bias, "bias") for bias in biases]
    geometries, shapes = check_sum(image, kernels, shifts, rates)
    branches = [
        (address(weight), weight.stride(), shape.rows, shape.columns)
        for weight, shape in zip(kernels, shapes, strict=True)
    ]
    inside = sum(map(_native.direct_products, shapes))
    if is_sum_shifted(shapes[0], inside, _native.shifted_products(shapes[0], branches), policy):
        result = _shifted(weights[0], image, kernels, shifts, rates, (shapes[0], branches))
        if result is not None:
            return result
    return composite.sum_branch_by_branch(x, weights, biases, geometries, policy)


def find_algorithm(x: Tensor, shape: Shape, policy: int) -> str:
    """Return `choose_algorithm` for an input of float32 on the CPU."""
    return choose_algorithm(shape, policy, is_channels_last(x), torch.get_num_threads())


def torch_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Compute torch's convolution; residual and ReLU are one native pass where both tensors have one layout."""
    if residual is not None and relu and x.dtype == torch.float32:
        out = torch.conv2d(x, weight, bias, *geometry)
        other = residual.detach()
        if _have_same_dense_layout(out, other):
            other = alias(other, "residual")
            _native.add_relu(address(out), address(other), out.numel(), torch.get_num_threads())
        else:
            out += residual
            out.relu_()
        return out.contiguous(memory_format=result_format(x, weight))
    return composite.torch_conv2d(x, weight, bias, residual, geometry, relu)


def _have_same_dense_layout(out: Tensor, residual: Tensor) -> bool:
    dense = out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)
    return dense and out.stride() == residual.stride() and out.shape == residual.shape


# From this size in bytes, glibc asks the system for new memory for each result, and huge pages pay off.
_LARGE = 32 * 2**20


def _empty_result(shape: Sequence[int], layout: torch.memory_format) -> Tensor:
    if 4 * math.prod(shape) < _LARGE:
        return torch.empty(tuple(shape), memory_format=layout)
    if layout == torch.contiguous_format:
        return empty_rows(shape, torch.float32)
    batch, filters, height, width = shape
    return empty_rows((batch, height, width, filters), torch.float32).permute(0, 3, 1, 2)


class _Call:
    """The arguments of one call of a kernel, which stay alive during it, and its result."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, shape: Shape) -> None:
        self.format = result_format(x, weight)
        self.threads = torch.get_num_threads()
        self.shape = shape
        self.x = _channels_last(x, self.threads)
        self.bias = None if bias is None else bias.contiguous()
        self.residual = None if residual is None else _channels_last(residual, self.threads)
        self.out = _empty_result(shape.output, torch.channels_last)

    def epilogue(self, relu: bool) -> tuple[int, int, bool]:
        """Return what follows the products, as the native functions take it: (bias, residual, relu)."""
        return (address(self.bias), address(self.residual), relu)

    def result(self) -> Tensor:
        """Return the result in the layout that the input asks for."""
        if self.format == torch.channels_last:
            return self.out
        batch, filters, height, width = self.out.shape
        out = _empty_result(self.out.shape, torch.contiguous_format)
        _native.transpose_planes(address(self.out), batch, height * width, filters, address(out), self.threads)
        return out


def _channels_last(values: Tensor, threads: int) -> Tensor:
    if not values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last):
        return values.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = values.shape
    out = _empty_result(values.shape, torch.channels_last)
    _native.transpose_planes(address(values), batch, channels, height * width, address(out), threads)
    return out


def _winograd(owner: Tensor, weight: Tensor, call: _Call, relu: bool) -> bool:
    shape, threads = call.shape, call.threads
    packed = packed_weights(
        owner,
        [weight],
        "winograd",
        _native.winograd_weights_size(shape),
        lambda out: _native.winograd_pack(shape, address(weight), weight.stride(), address(out), threads),
    )
    if packed is None:
        return False
    # Not from torch: its allocator returns memory to the system, and clearing new memory takes longer than using it.
    with borrowed_parts([4 * _native.winograd_workspace_size(shape)]) as (workspace,):
        return _native.winograd(
            shape, address(call.x), address(packed), call.epilogue(relu), address(call.out), workspace, threads
        )


def _direct(owner: Tensor, weight: Tensor, call: _Call, relu: bool) -> bool:
    shape, threads = call.shape, call.threads
    packed = packed_weights(
        owner,
        [weight],
        "direct",
        _native.direct_weights_size(shape),
        lambda out: _native.direct_pack(shape, address(weight), weight.stride(), address(out), threads),
    )
    if packed is None:
        return False
    _native.direct(shape, address(call.x), address(packed), call.epilogue(relu), address(call.out), threads)
    return True


def _shifted(
    owner: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    rates: Sequence[int],
    problem: tuple[Shape, list[Any]],
) -> Tensor | None:
    bias = torch.stack(list(biases)).sum(dim=0) if biases else None
    call = _Call(x, weights[0], bias, None, problem[0])
    packed = packed_weights(
        owner,
        weights,
        ("shifted", *rates, *((tuple(weight.shape), weight.stride()) for weight in weights)),
        _native.shifted_weights_size(*problem),
        lambda out: _native.shifted_pack(*problem, address(out), call.threads),
    )
    if packed is None:
        return None
    _native.shifted_sum(
        *problem, address(call.x), address(packed), call.epilogue(False), address(call.out), call.threads
    )
    return call.result()
