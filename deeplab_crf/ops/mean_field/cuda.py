"""Mean field, its derivative and the layout of scores on CUDA: the backend of the operators of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from deeplab_crf.core.energies import LARGEST_ENERGY
from deeplab_crf.ops.cuda_backend import Engine, engine_for, is_capturing
from deeplab_crf.ops.lattice.cuda import check_lattice, filter_workspace, lattice_fields, shape_of
from deeplab_crf.ops.mean_field.terms import AdjointInputs, Settings, TermGradients, TermTensors, check_order
from deeplab_crf.ops.tensors import address, type_suffix

__all__ = ["check_lattice", "mean_field", "mean_field_gradient", "pack_unary", "unpack"]

# Orders that have been looked at, and the version they had: a layer brings the same one again and again.
_checked_orders: Any = WeakTensorKeyDictionary()


def mean_field(
    unary: Tensor, tensors: TermTensors, order: Tensor | None, start: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Q, or log Q, ``(B, N, L)``, and the trace. Waits for the device only to look at an order it has not seen before, and not at
    all while a graph is captured. Compatibilities that are not finite show as NaN."""
    engine, suffix = engine_for(unary), type_suffix(unary.dtype, "unary")
    if order is not None:
        _check_order_once(order, unary.shape[1])
        order = order.contiguous()
    unary = contiguous_rows(unary)
    batch, _, labels = unary.shape
    out = torch.empty_like(unary)
    if start is not None:
        out.copy_(start)
    trace = unary.new_empty(settings.trace_shape(unary))
    beliefs = unary.new_empty(engine.function(f"mean_field_workspace_{suffix}")(tuple(unary.shape)))
    terms, kept = describe_terms(engine, tensors, labels)
    watched = settings.tolerance > 0
    counters = unary.new_empty(2 * batch if watched else 0, dtype=torch.int32)  # steps, and what has stopped
    changes = unary.new_empty(settings.iterations * batch if watched else 0)
    options = {
        "order": address(order),
        "start_from_q": start is not None,
        "log_output": settings.log_output,
        "iterations": settings.iterations,
        "damping": settings.damping,
        "tolerance": settings.tolerance,
        "trace": address(trace),
        "trace_slots": max(1, len(trace)),
        "beliefs": address(beliefs),
        "steps": address(counters),
        "changes": address(changes),
        "state": address(counters[batch:]),
    }
    run = engine.function(f"mean_field_{suffix}")
    run(engine.queue, tuple(unary.shape), address(unary), address(out), terms, options)
    del kept  # until here: memory given back earlier might be another tensor's before the kernels run
    return out, trace


def describe_terms(
    engine: Engine, tensors: TermTensors, labels: int, filters: int = 1
) -> tuple[list[tuple[Any, ...]], list[Any]]:
    """The kernels as the native functions take them, with workspaces of so many filters; and what must live as long."""
    terms, kept = [], []
    for rows, weights, structure, norm_in, norm_out, compatibility in zip(*tensors, strict=True):
        lattice = (rows, weights, structure)
        owned = [norm_in.contiguous(), norm_out.contiguous(), compatibility.contiguous()]
        owned.append(filter_workspace(engine, lattice, labels, filters))
        kept.append(owned)
        before, after, compat, workspace = map(address, owned)
        terms.append((lattice_fields(lattice), shape_of(rows)[2], before, after, compatibility.ndim, compat, workspace))
    return terms, kept


def _check_order_once(order: Tensor, points: int) -> None:
    version = None if order.is_inference() else order._version
    if is_capturing() or (version is not None and _checked_orders.get(order) == (version, points)):
        return
    check_order(order, points)
    if version is not None:
        _checked_orders[order] = (version, points)


def mean_field_gradient(inputs: AdjointInputs, tensors: TermTensors, gradients: TermGradients) -> tuple[Tensor, Tensor]:
    """Gradients in unary and start (without elements where there is none); writes those of the kernels into ``gradients``. Does not
    wait for the device."""
    out, suffix = inputs.out.contiguous(), type_suffix(inputs.out.dtype, "out")
    engine, shape = engine_for(out), tuple(out.shape)
    grad, trace = contiguous_rows(inputs.grad), inputs.trace.contiguous()
    order = None if inputs.order is None else inputs.order.contiguous()
    grad_unary = torch.empty_like(out)
    grad_start = torch.empty_like(out) if inputs.from_start else out.new_empty(0)
    terms, kept = [], []
    for term, targets in zip(zip(*tensors, strict=True), zip(*gradients, strict=True), strict=True):
        rows, weights, structure, norm_in, norm_out, compatibility = term
        of_weights, of_norm_in, of_norm_out, of_compat = map(address, targets)
        owned = [norm_in.contiguous(), norm_out.contiguous(), compatibility.contiguous()]
        kept.append(owned)
        terms.append(
            (
                lattice_fields((rows, weights, structure)),
                shape_of(rows)[2],
                address(owned[0]),
                address(owned[1]),
                compatibility.ndim,
                address(owned[2]),
                of_compat,
                of_norm_in,
                of_norm_out,
                of_weights,
            )
        )
    watched = inputs.tolerance > 0
    steps = out.new_empty(shape[0] if watched else 0, dtype=torch.int32)
    moves = out.new_empty((inputs.iterations + 1) * shape[0] if watched else 0)
    options = {
        "iterations": inputs.iterations,
        "order": address(order),
        "trace": address(trace),
        "trace_fixed": inputs.fixed_point,
        "tolerance": inputs.tolerance,
        "output": address(out),
        "log_output": inputs.log_output,
        "grad_output": address(grad),
        "grad_unary": address(grad_unary),
        "grad_start": address(grad_start),
        "steps": address(steps),
        "moves": address(moves),
        "workspace": 0,
    }
    size = engine.function(f"mean_field_gradient_workspace_{suffix}")(shape, terms, options)
    workspace = torch.empty(size, dtype=torch.uint8, device=out.device)
    options["workspace"] = address(workspace)
    engine.function(f"mean_field_gradient_{suffix}")(engine.queue, shape, terms, options)
    return grad_unary, grad_start


def pack_unary(scores: Tensor, factor: float, *, check: bool) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * scores``, ``(B, N, L)`` of any strides, contiguous, +inf capped as core/energies.py says; and, with ``check``,
    (image, point, label) of the first energy that is not accepted, or None: then this waits for the device."""
    engine, suffix = engine_for(scores), type_suffix(scores.dtype, "values")
    out = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if not out.numel():
        return out, None
    first = torch.empty(1 if check else 0, dtype=torch.int64, device=scores.device)
    engine.function(f"pack_unary_{suffix}")(
        engine.queue, _described(scores), address(out), factor, LARGEST_ENERGY, address(first)
    )
    index = int(first) if check else -1  # unsigned all ones: none
    _, points, labels = scores.shape
    return out, None if index < 0 else (index // points // labels, index % points, index // points % labels)


def contiguous_rows(values: Tensor) -> Tensor:
    """``values`` ``(B, N, L)``, contiguous."""
    return values if values.is_contiguous() else _transposed(values)


def unpack(scores: Tensor) -> Tensor:
    """``(B, N, L)`` as ``(B, L, N)``, contiguous."""
    return _transposed(scores.transpose(1, 2))


def _transposed(values: Tensor) -> Tensor:
    """``values`` of any strides, contiguous."""
    engine, suffix = engine_for(values), type_suffix(values.dtype, "values")
    out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    if out.numel():
        engine.function(f"transpose_{suffix}")(engine.queue, _described(values), address(out))
    return out


def _described(values: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return address(values), tuple(values.shape), values.stride()
