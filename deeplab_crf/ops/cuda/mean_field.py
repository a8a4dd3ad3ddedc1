"""Mean field on CUDA: the kernel behind the operator of ops/mean_field.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from deeplab_crf.ops.cuda.engine import Engine, engine_for, is_capturing
from deeplab_crf.ops.cuda.lattice import filter_workspace, lattice_fields, shape_of
from deeplab_crf.ops.cuda.layout import contiguous_rows
from deeplab_crf.ops.tensors import address, type_suffix
from deeplab_crf.ops.terms import Settings, TermTensors, check_order

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
