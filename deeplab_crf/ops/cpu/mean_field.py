"""Mean field on the CPU: the kernel behind the operator of ops/mean_field.py."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.ops.cpu.lattice import checked_lattices
from deeplab_crf.ops.cpu.layout import contiguous_rows, empty_rows
from deeplab_crf.ops.tensors import address, type_suffix
from deeplab_crf.ops.terms import Settings, TermTensors, check_finite, own_order
from deeplab_crf.workspace import borrowed_parts


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
