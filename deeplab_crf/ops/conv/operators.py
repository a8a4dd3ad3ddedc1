"""Dilated convolution with its epilogue, and the sum of dilated convolutions, as operators.

Inputs (B, C, H, W) may have any strides. The kernels work on channels_last; other layouts are copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_crf.ops.conv import composite, cpu, cuda
from deeplab_crf.ops.conv.algorithms import current_policy
from deeplab_crf.ops.conv.shapes import (
    Geometry,
    branch_geometries,
    check_convolution,
    check_sum,
    convolution_shape,
    is_lowered,
    known_shape,
    make_geometry,
    pair,
    result_format,
)
from deeplab_crf.ops.library import register_operator

ACTIVATIONS = (None, "relu")


def check_activation(activation: str | None) -> None:
    """Check that the activation is None or "relu".

    Raises:
        ValueError: It is not.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be None or "relu"; got {activation!r}')


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
    """Compute ``activation(conv2d(x, weight, bias) + residual)`` in one call.

    Differentiable any number of times in all tensors. Within torch.func (vmap, grad, jvp) and with
    forward derivatives, torch's operations compute it.

    float32 on the CPU takes the fastest algorithm (`set_conv_algorithm`): "torch" and "direct" are exact
    to 1e-5 of the largest value, "winograd" to 1e-4. On CUDA, torch convolves and one native pass
    computes the rest, unless "winograd" is forced. Other dtypes and devices use torch alone.
    Transformed weights stay cached (docs/convolution.md).

    Args:
        x: (B, C, H, W) or (C, H, W), contiguous or channels_last.
        weight: (K, C, kh, kw), of the dtype of x, like all tensors.
        bias: (K,).
        stride: One number or (rows, columns).
        padding: One number or (rows, columns).
        dilation: One number or (rows, columns).
        activation: None or "relu".
        residual: Added before the activation; of the shape of the result.

    Returns:
        (B, K, OH, OW) or (K, OH, OW); channels_last if the input or the weight is.

    Raises:
        RuntimeError: torch.nn.functional.conv2d would raise one, or the residual has another shape.
        ValueError: The activation is unknown.
    """
    check_activation(activation)
    geometry = (pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    return convolve(x, (weight, bias), residual, geometry, activation == "relu", current_policy())


def convolve(
    x: Tensor,
    parameters: tuple[Tensor, Tensor | None],
    residual: Tensor | None,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    relu: bool,
    policy: int,
) -> Tensor:
    """Compute `dilated_conv2d` with a policy.

    Args:
        x: As in `dilated_conv2d`.
        parameters: Weight and bias.
        residual: As in `dilated_conv2d`.
        geometry: Stride, padding and dilation as pairs.
        relu: Whether a ReLU follows.
        policy: Flags of `algorithms.Policy`.

    Returns:
        The result of `dilated_conv2d`.
    """
    single = x.ndim == 3
    if single:
        x = x.unsqueeze(0)
        residual = None if residual is None else residual.unsqueeze(0)
    if composite.is_transformed((x, *parameters, residual)):
        pairs = make_geometry(*geometry)
        check_convolution(x, *parameters, residual, pairs, convolution_shape)
        result = composite.differentiable_conv2d(x, parameters, residual, pairs, relu)
    else:
        result = torch.ops.deeplab_crf.dilated_conv2d(x, *parameters, residual, *geometry, relu, policy)
    return result.squeeze(0) if single else result


def aspp_sum(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, rates: Sequence[int]) -> Tensor:
    """Compute the sum of parallel dilated convolutions that keep the size, in one pass over the input.

    This is DeepLabV2's head: ``sum over i of conv2d(x, weights[i], biases[i], padding=p_i,
    dilation=rates[i])`` with ``p_i = rates[i] (k - 1) / 2``. Algorithms, layouts, derivatives and errors
    are those of `dilated_conv2d`.

    Args:
        x: (B, C, H, W) or (C, H, W).
        weights: (K, C, k, k) each, k odd.
        biases: (K,) each, or None.
        rates: The dilation of each branch.

    Returns:
        (B, K, H, W) or (K, H, W).

    Raises:
        RuntimeError: The numbers of weights, biases and rates differ, or shapes do not fit.

    References:
        L.-C. Chen et al., DeepLab (TPAMI 2018), section 3.2.
    """
    weights, biases, rates = list(weights), [] if biases is None else list(biases), list(rates)
    if not len(weights) == len(rates) or len(biases) not in (0, len(weights)) or not weights:
        raise RuntimeError(
            "expected as many weights as rates, at least one, and as many biases or None, but got "
            f"{len(weights)} weights, {len(rates)} rates and {len(biases)} biases"
        )
    single = x.ndim == 3
    x = x.unsqueeze(0) if single else x
    if composite.is_transformed((x, *weights, *biases)):
        geometries, _ = check_sum(x, weights, biases, rates, convolution_shape)
        result = composite.differentiable_sum(x, weights, biases, geometries)
    else:
        result = torch.ops.deeplab_crf.aspp_sum(x, weights, biases, rates, current_policy())
    return result.squeeze(0) if single else result


def chosen_algorithm(
    x: Tensor, weight: Tensor, *, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> str:  # fmt: skip
    """Return the algorithm that `dilated_conv2d` would take: "torch", "direct" or "winograd"."""
    geometry = make_geometry(pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    x = x.unsqueeze(0) if x.ndim == 3 else x
    shape = known_shape(x.shape, weight.shape, None, None, geometry)
    if x.is_cuda:
        return cuda.find_algorithm(x, shape, current_policy())
    native = x.dtype == torch.float32 and x.device.type == "cpu"
    return cpu.find_algorithm(x, shape, current_policy()) if native else "torch"


def _conv_elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *arguments: Any) -> Tensor:
    geometry = make_geometry(*arguments[:3])
    check_convolution(x, weight, bias, residual, geometry, convolution_shape)
    return composite.torch_conv2d(x, weight, bias, residual, geometry, arguments[3])


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *arguments: Any) -> Tensor:
    shape = check_convolution(x, weight, bias, residual, make_geometry(*arguments[:3]), convolution_shape)
    return torch.empty(shape.output, dtype=x.dtype, device=x.device, memory_format=result_format(x, weight))


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, stride, padding, dilation, relu, _ = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.geometry = make_geometry(stride, padding, dilation)
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, output = ctx.saved_tensors
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)  # 0 behind a closed ReLU, also for inf and NaN
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


def _sum_elsewhere(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: int
) -> Tensor:
    geometries, _ = check_sum(x, weights, biases, rates, convolution_shape)
    return composite.sum_branch_by_branch(x, weights, biases, geometries, policy)


def _sum_fake(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], rates: Sequence[int], policy: int
) -> Tensor:
    check_sum(x, weights, biases, rates, convolution_shape)
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
    for weight, geometry in zip(weights, branch_geometries(weights, ctx.rates), strict=True):
        part, grad_weight, _ = _convolution_gradients(grad, x, weight, geometry, (need_x, need_weights, False))
        grad_weights.append(grad_weight)
        if part is not None:
            grad_x = part if grad_x is None else grad_x + part
    grad_bias = grad.sum(dim=(0, 2, 3)) if ctx.biases_need else None
    return grad_x, grad_weights, [grad_bias] * ctx.num_biases, None, None


def _lower_precision(device_type: str, tensor: Tensor) -> Tensor:
    """Cast as torch's autocast does for convolutions."""
    return tensor.to(torch.get_autocast_dtype(device_type)) if is_lowered(tensor) else tensor


register_operator(
    "dilated_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, int[2] "
    "padding, int[2] dilation, bool relu, int policy) -> Tensor",
    cpu.dilated_conv2d,
    _conv_fake,
    _conv_backward,
    _conv_setup,
    cuda.dilated_conv2d,
    _conv_elsewhere,
    autocast=_lower_precision,
)
register_operator(
    "aspp_sum(Tensor x, Tensor[] weights, Tensor[] biases, int[] rates, int policy) -> Tensor",
    cpu.aspp_sum,
    _sum_fake,
    _sum_backward,
    _sum_setup,
    cuda.aspp_sum,
    _sum_elsewhere,
    autocast=_lower_precision,
)
