"""The derivative of mean field inference, as an operator and as the formula that autograd calls."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from deeplab_crf.ops.library import no_second_derivative, register_operator
from deeplab_crf.ops.mean_field import cpu, cuda
from deeplab_crf.ops.mean_field.checks import check_scores, check_terms
from deeplab_crf.ops.mean_field.terms import AdjointInputs, TermGradients, TermTensors
from deeplab_crf.ops.tensors import check_like, check_shape, type_suffix

# The kinds of tensors a kernel has gradients for: weights, norms_in, norms_out, compatibilities; their places among the arguments
# of mean_field.
_KINDS = (2, 4, 5, 6)


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What the backward pass of mean_field needs, by its argument ``gradients``."""
    unary, *lists, order, start, iterations, damping, tolerance, log_output, gradients = inputs
    trace = output[1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(trace)
    if gradients == "none":
        raise ValueError('gradients must be "store", "recompute" or "implicit" for inputs that require one; got "none"')
    if gradients != "implicit" and (damping != 0 or tolerance != 0):
        raise ValueError(
            f'gradients must be "implicit" with damping or a tolerance; got {gradients!r} with damping={damping}, '
            f"tolerance={tolerance}. Set both to 0, or run under torch.no_grad()"
        )
    if gradients == "implicit" and start is not None:
        raise ValueError('gradients="implicit" has no derivative in a start; got one. Start from softmax(-unary)')
    ctx.kernels, ctx.has_start, ctx.has_order = len(lists[0]), start is not None, order is not None
    ctx.iterations, ctx.tolerance, ctx.log_output, ctx.gradients = iterations, tolerance, log_output, gradients
    if gradients == "recompute":
        result = (unary, start) if ctx.has_start else (unary,)
    else:
        result = output
    flat = [tensor for entries in lists for tensor in entries]
    ctx.save_for_backward(*flat, *([order] if ctx.has_order else []), *result)


def mean_field_backward(ctx: Any, grad: Tensor | None, grad_trace: None) -> tuple[Any, ...]:
    """Gradients in the places of mean_field's arguments."""
    nothing = [None] * ctx.kernels
    if grad is None:
        return (None, *[nothing] * 6, *[None] * 7)
    kernels, saved = ctx.kernels, list(ctx.saved_tensors)
    lists = [saved[kind * kernels : (kind + 1) * kernels] for kind in range(6)]
    rest = saved[6 * kernels :]
    order = rest.pop(0) if ctx.has_order else None
    if ctx.gradients == "recompute":
        unary, start = rest if ctx.has_start else (rest[0], None)
        out, trace = torch.ops.deeplab_crf.mean_field(
            unary, *lists, order, start, ctx.iterations, 0.0, 0.0, ctx.log_output, "store"
        )
    else:
        out, trace = rest
    fixed_point = ctx.gradients == "implicit"
    if fixed_point:
        trace = out.exp() if ctx.log_output else out
    needed = [ctx.needs_input_grad[kind][kernel] for kernel in range(kernels) for kind in _KINDS]
    grad_unary, grad_start, *grads = torch.ops.deeplab_crf.mean_field_backward(
        grad,
        out,
        trace,
        *lists,
        order,
        ctx.iterations,
        ctx.tolerance,
        ctx.log_output,
        ctx.has_start,
        fixed_point,
        needed,
    )
    weights, norms_in, norms_out, compatibilities = (
        [tensor if asked else None for tensor, asked in zip(tensors, needed[kind::4], strict=True)]
        for kind, tensors in enumerate(grads)
    )
    start_gradient = grad_start if ctx.has_start else None
    lists_gradient = (nothing, weights, nothing, norms_in, norms_out, compatibilities)
    return (grad_unary, *lists_gradient, None, start_gradient, *[None] * 5)


def _gradient(
    kernels: ModuleType,
    grad: Tensor,
    out: Tensor,
    trace: Tensor,
    rows: list[Tensor],
    weights: list[Tensor],
    structures: list[Tensor],
    norms_in: list[Tensor],
    norms_out: list[Tensor],
    compatibilities: list[Tensor],
    order: Tensor | None,
    iterations: int,
    tolerance: float,
    log_output: bool,
    from_start: bool,
    fixed_point: bool,
    needed: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    type_suffix(out.dtype, "out")
    check_scores(out, "out", order, iterations)
    check_shape(grad, out.shape, "grad")
    check_shape(trace, out.shape if fixed_point else (iterations, *out.shape), "trace")
    for tensor, name in ((grad, "grad"), (trace, "trace")):
        check_like(tensor, out, name, "out")
    inputs = AdjointInputs(grad, out, trace, order, iterations, tolerance, log_output, from_start, fixed_point)
    tensors = TermTensors(rows, weights, structures, norms_in, norms_out, compatibilities)
    check_terms(kernels, out, "out", tensors)
    if len(needed) != 4 * len(rows):
        raise ValueError(f"needed must hold 4 entries a kernel, {4 * len(rows)}; got {len(needed)}")
    gradients = _empty_gradients(tensors, needed)
    grad_unary, grad_start = kernels.mean_field_gradient(inputs, tensors, gradients)
    return grad_unary, grad_start, *gradients


def _empty_gradients(tensors: TermTensors, needed: list[bool]) -> TermGradients:
    kinds = (tensors.weights, tensors.norms_in, tensors.norms_out, tensors.compatibilities)
    return TermGradients(
        *(
            [tensor.new_empty(tensor.shape if needed[4 * m + kind] else 0) for m, tensor in enumerate(entries)]
            for kind, entries in enumerate(kinds)
        )
    )


def _gradient_fake(grad: Tensor, out: Tensor, trace: Tensor, *arguments: Any) -> tuple[Any, ...]:
    *lists, _, _, _, _, from_start, _, needed = arguments
    grad_start = out.new_empty(out.shape if from_start else 0)
    gradients = _empty_gradients(TermTensors(*lists), needed)
    return out.new_empty(out.shape), grad_start, *gradients


register_operator(
    "mean_field_backward(Tensor grad, Tensor out, Tensor trace, Tensor[] rows, Tensor[] weights, Tensor[] "
    "structures, Tensor[] norms_in, Tensor[] norms_out, Tensor[] compatibilities, Tensor? order, int "
    "iterations, float tolerance, bool log_output, bool from_start, bool fixed_point, bool[] needed) -> "
    "(Tensor grad_unary, Tensor grad_start, Tensor[] grad_weights, Tensor[] grad_norms_in, Tensor[] "
    "grad_norms_out, Tensor[] grad_compatibilities)",
    partial(_gradient, cpu),
    _gradient_fake,
    no_second_derivative("mean_field"),
    cuda=partial(_gradient, cuda),
)
