"""Mean field, its derivative and the layout of scores on the CPU: the backend of the operators of this package."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.core.energies import LARGEST_ENERGY
from deeplab_crf.ops.lattice.cpu import check_lattice, checked_lattices
from deeplab_crf.ops.mean_field.terms import (
    AdjointInputs,
    Settings,
    TermGradients,
    TermTensors,
    check_finite,
    own_order,
)
from deeplab_crf.ops.tensors import address, empty_rows, type_suffix
from deeplab_crf.runtime.workspace import borrowed_parts

__all__ = ["check_lattice", "mean_field", "mean_field_gradient", "pack_unary", "unpack"]


def mean_field(
    unary: Tensor, tensors: TermTensors, order: Tensor | None, start: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Q, or log Q, ``(B, N, L)``, and the trace."""
    check_finite(tensors.compatibilities)
    if order is not None:
        order = own_order(order, unary.shape[1])
    suffix = type_suffix(unary.dtype, "unary")
    unary = contiguous_rows(unary)
    batch, points, labels = unary.shape
    out = empty_rows(unary.shape, unary.dtype)
    if start is not None:
        out.copy_(start)
    trace = empty_rows(settings.trace_shape(unary), unary.dtype)
    # log Q in `out` leaves no room there for the old Q that the tolerance compares with.
    watched = settings.log_output and settings.tolerance > 0 and trace.numel() == 0
    slots = empty_rows((1, *unary.shape), unary.dtype) if watched else trace
    threads = torch.get_num_threads()
    workspace_size = getattr(_native, f"mean_field_workspace_{suffix}")
    terms, sizes, kept = [], [], []
    for row, weight, structure, norm_in, norm_out, compatibility in zip(*tensors, strict=True):
        lattice = checked_lattices(row, weight, structure)
        sizes.append(workspace_size(lattice, labels, threads) * unary.itemsize)
        owned = [norm_in.contiguous(), norm_out.contiguous(), compatibility.contiguous()]
        kept.append(owned)
        terms.append((lattice, address(owned[0]), address(owned[1]), compatibility.ndim, address(owned[2])))
    options = {
        "start_from_q": start is not None,
        "iterations": settings.iterations,
        "damping": settings.damping,
        "tolerance": settings.tolerance,
        "threads": threads,
        "order": address(order),
        "log_output": settings.log_output,
        "trace": address(slots),
        "trace_slots": max(1, len(slots)),
    }
    run = getattr(_native, f"mean_field_batch_{suffix}")
    with borrowed_parts(sizes) as values:
        described = [(*term, part) for term, part in zip(terms, values, strict=True)]
        run(batch, points, labels, address(unary), address(out), described, options)
    return out, trace


def mean_field_gradient(inputs: AdjointInputs, tensors: TermTensors, gradients: TermGradients) -> tuple[Tensor, Tensor]:
    """Gradients in unary and start (without elements where there is none); writes those of the kernels into ``gradients``."""
    out, suffix, labels = inputs.out.contiguous(), type_suffix(inputs.out.dtype, "out"), inputs.out.shape[2]
    grad, trace = contiguous_rows(inputs.grad), inputs.trace.contiguous()
    order = None if inputs.order is None else own_order(inputs.order, out.shape[1])
    grad_unary = empty_rows(out.shape, out.dtype)
    grad_start = empty_rows(out.shape, out.dtype) if inputs.from_start else out.new_empty(0)
    threads = torch.get_num_threads()
    workspace_size = getattr(_native, f"mean_field_gradient_workspace_{suffix}")
    terms, sizes, kept = [], [], []
    for term, targets in zip(zip(*tensors, strict=True), zip(*gradients, strict=True), strict=True):
        rows, weights, structure, norm_in, norm_out, compatibility = term
        of_weights, of_norm_in, of_norm_out, of_compat = map(address, targets)
        refilter = bool(of_weights or of_norm_out)
        lattice = checked_lattices(rows, weights, structure)
        sizes.append(workspace_size(lattice, labels, threads, refilter) * out.itemsize)
        owned = [norm_in.contiguous(), norm_out.contiguous(), compatibility.contiguous()]
        kept.append(owned)
        described = (lattice, address(owned[0]), address(owned[1]), compatibility.ndim, address(owned[2]))
        terms.append((described, (of_compat, of_norm_in, of_norm_out, of_weights)))
    options = {
        "iterations": inputs.iterations,
        "threads": threads,
        "order": address(order),
        "trace": address(trace),
        "trace_fixed": inputs.fixed_point,
        "tolerance": inputs.tolerance,
        "output": address(out),
        "log_output": inputs.log_output,
        "grad_output": address(grad),
        "grad_unary": address(grad_unary),
        "grad_start": address(grad_start),
    }
    with borrowed_parts(sizes) as values:
        with_parts = [(*term, part, *targets) for (term, targets), part in zip(terms, values, strict=True)]
        getattr(_native, f"mean_field_gradient_{suffix}")(*out.shape, with_parts, options)
    return grad_unary, grad_start


def pack_unary(scores: Tensor, factor: float, *, check: bool) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * scores``, ``(B, N, L)`` of any strides, contiguous, +inf capped as core/energies.py says; and, with ``check``,
    (image, point, label) of the first energy that is not accepted, or None."""
    out, wrong = _pack(scores, factor, LARGEST_ENERGY)
    return out, wrong if check else None


def _pack(values: Tensor, factor: float, largest: float) -> tuple[Tensor, tuple[int, int, int] | None]:
    """``factor * values``, ``(B, N, L)`` of any strides, contiguous, and (image, point, label) of the first that is not finite.
    largest: as in `_native.pack_unary_f32_f32`. Where points lie next to each other this takes a fraction of torch's time."""
    suffix = type_suffix(values.dtype, "values")
    out = empty_rows(values.shape, values.dtype)
    batch, points, labels = values.shape if values.numel() else (0, 0, 0)
    _, point_stride, label_stride = values.stride()
    wrong = None
    for image in range(batch):
        index = getattr(_native, f"pack_unary_{suffix}_{suffix}")(
            address(values[image]),
            points,
            labels,
            point_stride,
            label_stride,
            address(out[image]),
            factor,
            largest,
            torch.get_num_threads(),
        )
        if index >= 0 and wrong is None:
            wrong = (image, index % points, index // points)
    return out, wrong


def contiguous_rows(values: Tensor) -> Tensor:
    """``values`` ``(B, N, L)``, contiguous."""
    return values if values.is_contiguous() else _pack(values, 1.0, math.inf)[0]


def unpack(scores: Tensor) -> Tensor:
    """``(B, N, L)`` as ``(B, L, N)``, contiguous."""
    out = empty_rows((scores.shape[0], scores.shape[2], scores.shape[1]), scores.dtype)
    for image, rows in zip(out, scores, strict=True):
        image.copy_(rows.t())  # two-dimensional: torch's fast path
    return out
