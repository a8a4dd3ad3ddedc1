"""Dilated convolution with its epilogue, and the sum of dilated convolutions, as operators.

Inputs, (B, C, H, W), may have any strides; the kernels work on channels_last, and what is laid out otherwise is copied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.ops.conv import algorithms as conv_algorithms
from deeplab_crf.ops.conv import cuda as on_cuda
from deeplab_crf.ops.conv.algorithms import choose_algorithm, choose_sum
from deeplab_crf.ops.conv.packed_weights import packed_weights
from deeplab_crf.ops.conv.shapes import (
    Geometry,
    Shape,
    check_types,
    convolution_shape,
    is_channels_last,
    is_lowered,
    known_shape,
    make_geometry,
    output_shape,
    pair,
    result_format,
)
from deeplab_crf.ops.conv.transforms import by_operations, is_transformed, sum_by_operations
from deeplab_crf.ops.library import register_operator
from deeplab_crf.ops.tensors import address, alias, check_unchanged, empty_rows
from deeplab_crf.runtime.workspace import borrowed_parts

ACTIVATIONS = (None, "relu")


def dilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(conv2d(x, weight, bias) + residual)`` in one go.

    x: (B, C, H, W) or (C, H, W), contiguous or channels_last; weight: (K, C, kh, kw); bias: (K,); residual: of the result's shape;
    all of one dtype. stride, padding, dilation: one number or (rows, columns). activation: None or "relu". Returns (B, K, OH, OW)
    or (K, OH, OW), channels_last if the input or the weight is. Differentiable, any number of times, in all tensors; within
    torch.func (vmap, grad, jvp) and with forward derivatives torch computes.

    float32 on the CPU is computed by what is fastest (`set_conv_algorithm`; exact to 1e-5 of the largest value with "torch" and
    "direct", to 1e-4 with "winograd"); on CUDA torch convolves, and one pass does the rest, unless "winograd" is forced; everything
    else by torch. Transformed weights are kept (docs/convolution.md). Raises RuntimeError where torch.nn.functional.conv2d does,
    and for a residual of another shape; ValueError for another activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be None or "relu"; got {activation!r}')
    geometry = (pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    return convolve(x, (weight, bias), residual, geometry, activation == "relu", conv_algorithms.get_conv_algorithm())


def convolve(
    x: Tensor,
    parameters: tuple[Tensor, Tensor | None],
    residual: Tensor | None,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    relu: bool,
    policy: str,
) -> Tensor:
    """`dilated_conv2d` with the algorithm that ``policy`` says. parameters: weight, bias. geometry: stride, padding, dilation."""
    single = x.ndim == 3
    if single:
        x = x.unsqueeze(0)
        residual = None if residual is None else residual.unsqueeze(0)
    if is_transformed((x, *parameters, residual)):
        pairs = make_geometry(*geometry)
        _check(x, *parameters, residual, pairs, convolution_shape)
        result = by_operations(x, parameters, residual, pairs, relu)
    else:
        result = torch.ops.deeplab_crf.dilated_conv2d(x, *parameters, residual, *geometry, relu, policy)
    return result.squeeze(0) if single else result


def aspp_sum(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, rates: Sequence[int]) -> Tensor:
    """``sum over i of conv2d(x, weights[i], biases[i], padding=p_i, dilation=rates[i])`` with the padding ``p_i = rates[i] (k - 1)
    / 2`` that keeps the size: DeepLabV2's head, in one pass over the input.

    x: (B, C, H, W) or (C, H, W); weights: (K, C, k, k) each, k odd; biases: (K,) each, or None. Returns (B, K, H, W) or (K, H, W).
    Algorithms, layouts, derivatives and errors are those of `dilated_conv2d`.
    """
    weights, biases, rates = list(weights), [] if biases is None else list(biases), list(rates)
    if not len(weights) == len(rates) or len(biases) not in (0, len(weights)) or not weights:
        raise RuntimeError(
            "expected as many weights as rates, at least one, and as many biases or None, but got "
            f"{len(weights)} weights, {len(rates)} rates and {len(biases)} biases"
        )
    single = x.ndim == 3
    x = x.unsqueeze(0) if single else x
    if is_transformed((x, *weights, *biases)):
        geometries, _ = _check_sum(x, weights, biases, rates, convolution_shape)
        result = sum_by_operations(x, weights, biases, geometries)
    else:
        result = torch.ops.deeplab_crf.aspp_sum(x, weights, biases, rates, conv_algorithms.get_conv_algorithm())
    return result.squeeze(0) if single else result


def chosen_algorithm(
    x: Tensor, weight: Tensor, *, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> str:  # fmt: skip
    """What `dilated_conv2d` would take for these: "torch", "direct" or "winograd"."""
    geometry = make_geometry(pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    x = x.unsqueeze(0) if x.ndim == 3 else x
    shape = known_shape(x.shape, weight.shape, None, None, geometry)
    if x.is_cuda:
        return on_cuda.choose_algorithm(x, shape, conv_algorithms.get_conv_algorithm())
    native = x.dtype == torch.float32 and x.device.type == "cpu"
    return _choose(shape, conv_algorithms.get_conv_algorithm(), x) if native else "torch"


def _by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    out = torch.conv2d(x, weight, bias, *geometry)
    other = None if residual is None else residual.detach()
    if other is not None and relu and _lie_alike(out, other):
        other = alias(other, "residual")
        _native.add_relu(address(out), address(other), out.numel(), torch.get_num_threads())
        return out.contiguous(memory_format=result_format(x, weight))
    if residual is not None:
        out += residual
    if relu:
        out.relu_()
    return out.contiguous(memory_format=result_format(x, weight))


def _lie_alike(out: Tensor, residual: Tensor) -> bool:
    """Whether a native pass can go through both as they lie."""
    native = out.dtype == torch.float32 and out.device.type == "cpu"
    dense = out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)
    return native and dense and out.stride() == residual.stride() and out.shape == residual.shape


# Bytes from which glibc asks the system anew for each result, and pages are worth being huge.
_LARGE = 32 * 2**20


def _empty_result(shape: Sequence[int], layout: torch.memory_format) -> Tensor:
    if 4 * math.prod(shape) < _LARGE:
        return torch.empty(tuple(shape), memory_format=layout)
    if layout == torch.contiguous_format:
        return empty_rows(shape, torch.float32)
    batch, filters, height, width = shape
    return empty_rows((batch, height, width, filters), torch.float32).permute(0, 3, 1, 2)


class _Native:
    """One convolution by a kernel: arguments that stay alive, and the result on its way back to the layout of the input."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, shape: Sequence[int]
    ) -> None:
        self.format = result_format(x, weight)
        self.threads = torch.get_num_threads()
        self.x = _channels_last(x, self.threads)
        self.bias = None if bias is None else bias.contiguous()
        self.residual = None if residual is None else _channels_last(residual, self.threads)
        self.out = _empty_result(shape, torch.channels_last)

    def epilogue(self, relu: bool) -> tuple[int, int, bool]:
        return (address(self.bias), address(self.residual), relu)

    def result(self) -> Tensor:
        if self.format == torch.channels_last:
            return self.out
        batch, filters, height, width = self.out.shape
        out = _empty_result(self.out.shape, torch.contiguous_format)
        _native.transpose_planes(address(self.out), (batch, height * width, filters), address(out), self.threads)
        return out


def _channels_last(values: Tensor, threads: int) -> Tensor:
    if not values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last):
        return values.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = values.shape
    out = _empty_result(values.shape, torch.channels_last)
    _native.transpose_planes(address(values), (batch, channels, height * width), address(out), threads)
    return out


def _winograd(owner: Tensor, weight: Tensor, call: _Native, shape: Shape, relu: bool) -> bool:
    transformed = packed_weights(
        owner,
        [weight],
        "winograd",
        _native.winograd_weights_size(shape),
        lambda out: _native.winograd_transform(shape, address(weight), weight.stride(), address(out), call.threads),
    )
    if transformed is None:
        return False
    # Not from torch: what its allocator gives back to the system and takes again costs more to clear than to use.
    with borrowed_parts([4 * _native.winograd_workspace_size(shape)]) as (workspace,):
        return _native.winograd(
            shape,
            address(call.x),
            address(transformed),
            call.epilogue(relu),
            address(call.out),
            workspace,
            call.threads,
        )


def _direct(owner: Tensor, weight: Tensor, call: _Native, shape: Shape, relu: bool) -> bool:
    packed = packed_weights(
        owner,
        [weight],
        "direct",
        _native.direct_weights_size(shape),
        lambda out: _native.direct_pack(shape, address(weight), weight.stride(), address(out), call.threads),
    )
    if packed is None:
        return False
    _native.direct(shape, address(call.x), address(packed), call.epilogue(relu), address(call.out), call.threads)
    return True


def _choose(shape: Shape, policy: str, x: Tensor) -> str:
    return choose_algorithm(shape, policy, is_channels_last(x), torch.get_num_threads())


def _conv_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    relu: bool,
    policy: str,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation)
    shape = _check(x, weight, bias, residual, geometry)
    if x.dtype == torch.float32:
        algorithm = _choose(shape, policy, x)
        if algorithm != "torch":
            owner = weight
            x, weight = alias(x, "input"), alias(weight, "weight")
            bias = None if bias is None else alias(bias, "bias")
            residual = None if residual is None else alias(residual, "residual")
            check_unchanged(_check(x, weight, bias, residual, geometry), shape)
            call = _Native(x, weight, bias, residual, output_shape(shape))
            compute = _direct if algorithm == "direct" else _winograd
            if compute(owner, weight, call, shape, relu):
                return call.result()
            # Not all finite: one infinite or NaN input spoils the whole tile. Torch says what is and what is not.
    return _by_torch(x, weight, bias, residual, geometry, relu)


def _conv_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    relu: bool,
    policy: str,
) -> Tensor:
    geometry, owner = make_geometry(stride, padding, dilation), weight
    x, weight = alias(x, "input"), alias(weight, "weight")
    bias = None if bias is None else alias(bias, "bias")
    residual = None if residual is None else alias(residual, "residual")
    shape = _check(x, weight, bias, residual, geometry)
    if on_cuda.choose_algorithm(x, shape, policy) == "winograd":
        return on_cuda.winograd(owner, x, weight, bias, residual, shape, relu)
    by_torch = on_cuda.by_torch if x.dtype in on_cuda.DTYPES else _by_torch
    return by_torch(x, weight, bias, residual, geometry, relu)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    find: Callable[..., Shape] = known_shape,
) -> Shape:
    sizes = (None if tensor is None else tensor.shape for tensor in (bias, residual))
    shape = find(x.shape, weight.shape, *sizes, geometry)
    check_types(x, weight, "weight")
    check_types(x, bias, "bias")
    check_types(x, residual, "residual")
    return shape


def _conv_elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *arguments: Any) -> Tensor:
    geometry = make_geometry(*arguments[:3])
    _check(x, weight, bias, residual, geometry, convolution_shape)
    return _by_torch(x, weight, bias, residual, geometry, arguments[3])


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *arguments: Any) -> Tensor:
    shape = _check(x, weight, bias, residual, make_geometry(*arguments[:3]), convolution_shape)
    return torch.empty(output_shape(shape), dtype=x.dtype, device=x.device, memory_format=result_format(x, weight))


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, stride, padding, dilation, relu, _ = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.geometry = make_geometry(stride, padding, dilation)
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, output = ctx.saved_tensors
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)  # 0 behind a closed ReLU, whatever comes back to it
    needed = ctx.needs_input_grad
    gradients = _convolution_gradients(
        grad, x, weight, ctx.geometry, (needed[0], needed[1], ctx.has_bias and needed[2])
    )
    return (*gradients, grad if ctx.has_residual and needed[3] else None, *[None] * 5)


def _convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if not any(needed):
        return None, None, None
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], *geometry, False, [0, 0], 1, list(needed)
    )
    return gradients


def _geometries(weights: Sequence[Tensor], rates: Sequence[int]) -> list[Geometry]:
    geometries = []
    for weight, rate in zip(weights, rates, strict=True):
        if weight.ndim != 4 or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise RuntimeError(
                f"expected 4D weights with an odd kernel size, but got weight of size: {list(weight.shape)}"
            )
        padding = [rate * (size - 1) // 2 for size in weight.shape[2:]]
        geometries.append(make_geometry([1, 1], padding, [rate, rate]))
    return geometries


def _check_sum(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    rates: Sequence[int],
    find: Callable[..., Shape] = known_shape,
) -> tuple[list[Geometry], list[Shape]]:
    """And what the kernels are told of each branch."""
    geometries = _geometries(weights, rates)
    shapes = []
    for i, (weight, geometry) in enumerate(zip(weights, geometries, strict=True)):
        shapes.append(_check(x, weight, biases[i] if biases else None, None, geometry, find))
        if weight.shape[0] != weights[0].shape[0]:
            raise RuntimeError(
                f"expected all weights to have {weights[0].shape[0]} filters, but got weight of size {list(weight.shape)}"
            )
    return geometries, shapes


def _sum_cpu(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: str
) -> Tensor:
    if x.dtype != torch.float32 or x.numel() == 0:
        geometries, _ = _check_sum(x, weights, biases, rates)
        return _branch_by_branch(x, weights, biases, geometries, policy)
    image, taps = alias(x, "input"), [alias(weight, "weight") for weight in weights]
    shifts = [alias(bias, "bias") for bias in biases]
    geometries, shapes = _check_sum(image, taps, shifts, rates)
    branches = [(address(weight), weight.stride(), *shape[3:]) for weight, shape in zip(taps, shapes, strict=True)]
    inside = sum(map(_native.direct_products, shapes))
    if choose_sum(shapes[0], inside, _native.shifted_products(shapes[0], branches), policy) == "shifted":
        result = _shifted(weights[0], image, taps, shifts, rates, (shapes[0], branches))
        if result is not None:
            return result
    return _branch_by_branch(x, weights, biases, geometries, policy)


def _shifted(
    owner: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    rates: Sequence[int],
    problem: tuple[Shape, list[Any]],
) -> Tensor | None:
    bias = torch.stack(list(biases)).sum(dim=0) if biases else None
    call = _Native(x, weights[0], bias, None, output_shape(problem[0]))
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


def _branch_by_branch(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], geometries: Sequence[Geometry], policy: str
) -> Tensor:
    total: Tensor | None = None
    for i, (weight, geometry) in enumerate(zip(weights, geometries, strict=True)):
        bias = biases[i] if biases else None
        total = torch.ops.deeplab_crf.dilated_conv2d(x, weight, bias, total, *geometry, False, policy)
    assert total is not None
    return total.contiguous(memory_format=result_format(x, weights[0]))


def _sum_cuda(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: str
) -> Tensor:
    image, kernels = alias(x, "input"), [alias(weight, "weight") for weight in weights]
    shifts = [alias(bias, "bias") for bias in biases]
    geometries, _ = _check_sum(image, kernels, shifts, rates)
    taps = on_cuda.find_taps(kernels, rates, image.shape[2:])
    if on_cuda.choose_sum(image, taps, kernels[0].shape[0], policy) == "shifted":
        return on_cuda.shifted(weights, image, kernels, shifts, taps)
    return _branch_by_branch(x, weights, biases, geometries, policy)


def _sum_elsewhere(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: str
) -> Tensor:
    geometries, _ = _check_sum(x, weights, biases, rates, convolution_shape)
    return _branch_by_branch(x, weights, biases, geometries, policy)


def _sum_fake(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: str
) -> Tensor:
    _check_sum(x, weights, biases, rates, convolution_shape)
    shape = (x.shape[0], weights[0].shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=result_format(x, weights[0]))


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, biases, rates, _ = inputs
    ctx.save_for_backward(x, *weights)
    ctx.rates, ctx.num_biases = rates, len(biases)
    ctx.biases_need = any(bias.requires_grad for bias in biases)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    need_x, need_weights = ctx.needs_input_grad[0], any(weight.requires_grad for weight in weights)
    grad_x: Tensor | None = None
    grad_weights: list[Tensor | None] = []
    for weight, geometry in zip(weights, _geometries(weights, ctx.rates), strict=True):
        part, grad_weight, _ = _convolution_gradients(grad, x, weight, geometry, (need_x, need_weights, False))
        grad_weights.append(grad_weight)
        if part is not None:
            grad_x = part if grad_x is None else grad_x + part
    grad_bias = grad.sum(dim=(0, 2, 3)) if ctx.biases_need else None
    return grad_x, grad_weights, [grad_bias] * ctx.num_biases, None, None


def _lower_precision(device_type: str, tensor: Tensor) -> Tensor:
    """Under autocast, what torch does with convolutions."""
    return tensor.to(torch.get_autocast_dtype(device_type)) if is_lowered(tensor) else tensor


register_operator(
    "dilated_conv2d",
    _conv_cpu,
    _conv_fake,
    _conv_backward,
    _conv_setup,
    _conv_cuda,
    _conv_elsewhere,
    autocast=_lower_precision,
)
register_operator(
    "aspp_sum", _sum_cpu, _sum_fake, _sum_backward, _sum_setup, _sum_cuda, _sum_elsewhere, autocast=_lower_precision
)
