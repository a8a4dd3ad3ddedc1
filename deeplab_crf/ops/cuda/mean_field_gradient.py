"""The derivative of mean field inference on CUDA tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeplab_crf.ops.cuda.engine import engine_for
from deeplab_crf.ops.mean_field_gradient import _empty_gradients
from deeplab_crf.ops.tensors import address, check_like, check_shape, type_suffix


def mean_field_gradient(
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
    """Operator ``mean_field_backward``, the contract of the CPU's: gradients in the unary energies, the start, and weights, norms
    and compatibilities by kernel, without elements where not needed. Waits for nothing."""
    suffix = type_suffix(out.dtype, "out")
    batch, _, _ = out.shape
    check_shape(grad, out.shape, "grad")
    check_shape(trace, out.shape if fixed_point else (iterations, *out.shape), "trace")
    for tensor, name in ((grad, "grad"), (trace, "trace")):
        check_like(tensor, out, name, "out")
    grad, out, trace = grad.contiguous(), out.contiguous(), trace.contiguous()
    order = None if order is None else order.contiguous()
    grad_unary = torch.empty_like(out)
    grad_start = out.new_empty(out.shape if from_start else 0)
    gradients = _empty_gradients(weights, norms_in, norms_out, compatibilities, needed)
    watched = tolerance > 0
    steps = torch.empty(batch if watched else 0, dtype=torch.int32, device=out.device)
    moves = out.new_empty((iterations + 1, batch) if watched else 0)
    terms, kept = [], []
    for m, structure in enumerate(structures):
        owned = [norms_in[m].contiguous(), norms_out[m].contiguous(), compatibilities[m].contiguous()]
        kept.append(owned)
        lattice = (address(rows[m]), address(weights[m]), address(structure), structure.numel())
        norms = (address(owned[0]), address(owned[1]))
        of_weights, of_norm_in, of_norm_out, of_compat = (address(tensors[m]) for tensors in gradients)
        targets = (of_compat, of_norm_in, of_norm_out, of_weights)
        dims = rows[m].shape[2] - 1
        terms.append((lattice, dims, *norms, compatibilities[m].ndim, address(owned[2]), *targets))
    options: dict[str, Any] = {
        "order": address(order),
        "iterations": iterations,
        "trace": address(trace),
        "trace_fixed": fixed_point,
        "output": address(out),
        "log_output": log_output,
        "grad_output": address(grad),
        "grad_unary": address(grad_unary),
        "grad_start": address(grad_start),
        "tolerance": tolerance,
        "steps": address(steps),
        "moves": address(moves),
        "workspace": 0,
    }
    engine = engine_for(out)
    shape = tuple(out.shape)
    size = getattr(engine.module, f"mean_field_gradient_workspace_{suffix}")(shape, terms, options)
    workspace = torch.empty(size, dtype=torch.uint8, device=out.device)
    options["workspace"] = address(workspace)
    getattr(engine.module, f"mean_field_gradient_{suffix}")(engine.queue, shape, terms, options)
    return grad_unary, grad_start, *gradients
