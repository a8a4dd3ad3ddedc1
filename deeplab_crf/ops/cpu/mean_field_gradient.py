"""The derivative of mean field on the CPU: the kernel behind the operator of ops/mean_field_gradient.py."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.ops.cpu.lattice import checked_lattices
from deeplab_crf.ops.cpu.layout import contiguous_rows, empty_rows
from deeplab_crf.ops.tensors import address, type_suffix
from deeplab_crf.ops.terms import AdjointInputs, TermGradients, TermTensors, own_order
from deeplab_crf.workspace import borrowed_parts


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
