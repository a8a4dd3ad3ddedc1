"""Features of points as an operator: positions and values, each over its standard deviation.

The CPU's kernel is NumPy: one division each, as in pydensecrf, and no loop in torch's thread pool, whose barriers cost more than
the work where the machine is busy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab_crf.ops.library import register_operator
from deeplab_crf.ops.tensors import check_shape, empty_rows, type_suffix


def scaled_features(positions: Tensor, values: Tensor | None, index: Tensor | None, widths: Tensor) -> Tensor:
    """Features ``(B, d, N)``: positions ``(B, axes, N)``, then values ``(B, C, N)``, over ``widths`` ``(d,)``, d = axes + C.

    positions and widths: float32 or float64. values: of that dtype, or uint8, ``values[:, :, index]`` being taken; positions may
    then have a batch of 1. index: a permutation, int64 ``(N,)``, or None. Differentiable in positions, values and widths.
    """
    result: Tensor = torch.ops.deeplab_crf.scaled_features(positions, values, index, widths)
    return result


def _scale(positions: Tensor, values: Tensor | None, index: Tensor | None, widths: Tensor) -> Tensor:
    type_suffix(positions.dtype, "positions")
    _check(positions, values, index, widths)
    out = empty_rows(_shape(positions, values), positions.dtype)
    result, scales = out.numpy(), widths.numpy()
    axes = positions.shape[1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the lattice refuses what is not finite
        np.divide(positions.numpy(), scales[:axes, None], out=result[:, :axes])
        if values is not None:
            given, chosen = values.numpy(), slice(None) if index is None else index.numpy()
            for image in range(len(given)):
                for channel in range(given.shape[1]):
                    row = result[image, axes + channel]
                    row[:] = given[image, channel][chosen]
                    row /= scales[axes + channel]
    return out


def _scale_by_torch(positions: Tensor, values: Tensor | None, index: Tensor | None, widths: Tensor) -> Tensor:
    """The same on any other device. CUDA divides as the CPU does, to the last bit."""
    _check(positions, values, index, widths)
    points = positions
    if values is not None:
        chosen = values if index is None else values[:, :, index]
        points = torch.cat([positions.expand(values.shape[0], -1, -1), chosen.to(positions.dtype)], dim=1)
    return points / widths[:, None]


def _check(positions: Tensor, values: Tensor | None, index: Tensor | None, widths: Tensor) -> None:
    batch, axes, points = positions.shape
    channels = 0
    if values is not None:
        channels = values.shape[1]
        if batch not in (1, values.shape[0]):
            raise ValueError(f"positions must have a batch of 1 or {values.shape[0]} as values do; got {batch}")
        if values.dtype not in (torch.uint8, positions.dtype):
            raise TypeError(f"values must be uint8 or {positions.dtype}; got {values.dtype}. Convert them with .to()")
        check_shape(values, (values.shape[0], channels, points), "values")
    if index is not None:
        check_shape(index, (points,), "index")
    check_shape(widths, (axes + channels,), "widths")
    if widths.dtype != positions.dtype:
        raise TypeError(f"widths must have the dtype of positions, {positions.dtype}; got {widths.dtype}")


def _shape(positions: Tensor, values: Tensor | None) -> tuple[int, ...]:
    if values is None:
        return tuple(positions.shape)
    return values.shape[0], positions.shape[1] + values.shape[1], positions.shape[2]


def _scale_fake(positions: Tensor, values: Tensor | None, index: Tensor | None, widths: Tensor) -> Tensor:
    return positions.new_empty(_shape(positions, values))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    positions, _, index, widths = inputs
    ctx.save_for_backward(output, widths, *([] if index is None else [index]))
    ctx.axes = positions.shape[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, widths, *index = ctx.saved_tensors
    grad_positions = grad_values = grad_widths = None
    if ctx.needs_input_grad[3]:
        grad_widths = -(grad * features).sum((0, 2)) / widths
    if ctx.needs_input_grad[0]:
        grad_positions = grad[:, : ctx.axes] / widths[: ctx.axes, None]  # autograd sums over a batch of 1
    if ctx.needs_input_grad[1]:
        grad_values = grad[:, ctx.axes :] / widths[ctx.axes :, None]
        if index:
            grad_values = torch.zeros_like(grad_values).scatter(2, index[0].expand_as(grad_values), grad_values)
    return grad_positions, grad_values, None, grad_widths


register_operator(
    "scaled_features(Tensor positions, Tensor? values, Tensor? index, Tensor widths) -> Tensor",
    _scale,
    _scale_fake,
    _backward,
    _save,
    elsewhere=_scale_by_torch,
)
