"""The derivative of mean field on CUDA: the kernel behind the operator of ops/mean_field_gradient.py."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab_crf.ops.cuda.engine import engine_for
from deeplab_crf.ops.cuda.lattice import lattice_fields, shape_of
from deeplab_crf.ops.cuda.layout import contiguous_rows
from deeplab_crf.ops.tensors import address, type_suffix
from deeplab_crf.ops.terms import AdjointInputs, TermGradients, TermTensors


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
