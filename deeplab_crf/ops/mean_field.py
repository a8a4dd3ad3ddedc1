"""Mean field inference as an operator (Kraehenbuehl & Koltun, NIPS 2011, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeplab_crf import _native
from deeplab_crf.ops.lattice import Lattice, check_lattice
from deeplab_crf.ops.library import register_operator
from deeplab_crf.ops.mean_field_gradient import mean_field_backward, save_for_gradient
from deeplab_crf.ops.tensors import address, check_like, check_shape, contiguous_rows, empty_rows, type_suffix
from deeplab_crf.workspace import borrowed_parts

# Of what is damped only probabilities are at hand, and those below 1e-30 or so are 0.
_SMALLEST_PROBABILITY = 1e-30

GRADIENTS = ("store", "recompute", "implicit")


class PairwiseTerm(NamedTuple):
    """One kernel of the energy: ``compatibility @ (norm_out * L(norm_in * Q))``.

    norm_in, norm_out: ``(B, N)``, or None for ones. compatibility: shape ``()`` is a Potts weight w and adds ``-w K Q``, ``(L,)``
    adds ``+ compatibility * K Q``, ``(L, L)`` adds ``+ compatibility @ K Q``. Everything of one dtype.
    """

    lattice: Lattice
    norm_in: Tensor | None
    norm_out: Tensor | None
    compatibility: Tensor


def mean_field(
    unary: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    *,
    order: Tensor | None = None,
    damping: float = 0.0,
    tolerance: float = 0.0,
    log_output: bool = True,
    gradients: str = "store",
) -> Tensor:
    """``Q <- softmax(-U - sum_m C_m K_m Q)`` from ``Q = softmax(-U)``, all points of an image at once.

    unary: energies U ``(B, N, L)``. order: int32 ``(N,)``, the row of ``unary`` that each point of the lattices stands for, or
    None. damping in [0, 1): ``Q <- (1 - damping) new + damping old``. tolerance: an image stops after the iteration in which none
    of its probabilities moved by more. Returns log Q (taken from the energies, so it does not underflow), or Q, ``(B, N, L)``.

    gradients: how the backward pass, where one is needed, comes by the Q of every iteration, T of them:
      "store": kept in the forward pass. Memory T·B·N·L.
      "recompute": every ceil(sqrt(T))-th is kept, the others are computed again, a stretch at a time. Memory about 2·sqrt(T)·B·N·L,
        time one more forward pass.
      "implicit": the result is taken for the fixed point, whose derivative solves a linear equation by T steps (or to
        ``tolerance``). Memory B·N·L; exact where the iteration has converged. The one that damping and tolerance go with.
    """
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}; got {gradients!r}")
    tensors = _TermTensors.of(terms, unary)
    differentiable = [unary, *tensors.weights, *tensors.norms_in, *tensors.norms_out, *tensors.compatibilities]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)):
        gradients = "none"
    stretch = max(1, iterations)
    if gradients == "recompute":
        stretch = max(1, math.ceil(math.sqrt(iterations)))
    result: Tensor | None = None
    done = 0
    while result is None or done < iterations:
        steps = min(stretch, iterations - done)
        done += steps
        log = log_output and done == iterations and damping == 0
        result, _ = torch.ops.deeplab_crf.mean_field(
            unary, *tensors, order, result, steps, damping, tolerance, log, gradients
        )
    if log_output and damping > 0:
        return result.clamp_min(_SMALLEST_PROBABILITY).log()
    return result


class _TermTensors(NamedTuple):
    """Terms as the operators take them."""

    rows: list[Tensor]
    weights: list[Tensor]
    structures: list[Tensor]
    norms_in: list[Tensor]
    norms_out: list[Tensor]
    compatibilities: list[Tensor]

    @staticmethod
    def of(terms: Sequence[PairwiseTerm], unary: Tensor) -> _TermTensors:
        ones = unary.new_empty(0)
        return _TermTensors(
            [term.lattice.rows for term in terms],
            [term.lattice.weights for term in terms],
            [term.lattice.structure for term in terms],
            [ones if term.norm_in is None else term.norm_in for term in terms],
            [ones if term.norm_out is None else term.norm_out for term in terms],
            [term.compatibility for term in terms],
        )


def _check_terms(unary: Tensor, tensors: _TermTensors) -> None:
    batch, points, labels = unary.shape
    if len({len(entries) for entries in tensors}) != 1:
        raise ValueError(f"lists must have one entry a kernel each; got {[len(entries) for entries in tensors]}")
    for rows, weights, structure, norm_in, norm_out, compatibility in zip(*tensors, strict=True):
        check_lattice(rows, weights, structure, batch, points)
        check_like(weights, unary, "weights", "unary")
        check_like(compatibility, unary, "compatibilities", "unary")
        if not bool(torch.isfinite(compatibility).all()):
            raise ValueError("compatibilities must be finite; got NaN or inf. Check the weights of the kernels")
        if tuple(compatibility.shape) not in ((), (labels,), (labels, labels)):
            raise ValueError(
                f"compatibilities must have shape (), ({labels},) or ({labels}, {labels}); got {tuple(compatibility.shape)}"
            )
        for norm, name in ((norm_in, "norms_in"), (norm_out, "norms_out")):
            if norm.numel():
                check_like(norm, unary, name, "unary")
                check_shape(norm, (batch, points), name)


def _check_arguments(unary: Tensor, order: Tensor | None, start: Tensor | None, iterations: int) -> None:
    if unary.ndim != 3 or unary.numel() == 0:
        raise ValueError(f"unary must have shape (B, N, L), none of them 0; got {tuple(unary.shape)}")
    if iterations < 0:
        raise ValueError(f"iterations must be >= 0; got {iterations}")
    points = unary.shape[1]
    if order is not None and (order.dtype != torch.int32 or tuple(order.shape) != (points,)):
        raise ValueError(f"order must be int32 of shape ({points},); got {order.dtype} of shape {tuple(order.shape)}")
    if order is not None:
        low, high = (int(value) for value in torch.aminmax(order))
        if low < 0 or high >= points:
            raise ValueError(f"order must hold each of 0..{points - 1}; got {low}..{high}")
    if start is not None:
        check_like(start, unary, "start", "unary")
        check_shape(start, unary.shape, "start")


def _check_damping(damping: float, tolerance: float, log_output: bool) -> None:
    if not (0 <= damping < 1 and 0 <= tolerance < math.inf):
        raise ValueError(
            f"damping must be in [0, 1) and tolerance finite and >= 0; got damping={damping}, tolerance={tolerance}"
        )
    if log_output and damping > 0:
        raise ValueError(
            f"log_output must be False with damping, which mixes probabilities; got True and damping={damping}"
        )


def _mean_field(
    unary: Tensor,
    rows: list[Tensor],
    weights: list[Tensor],
    structures: list[Tensor],
    norms_in: list[Tensor],
    norms_out: list[Tensor],
    compatibilities: list[Tensor],
    order: Tensor | None,
    start: Tensor | None,
    iterations: int,
    damping: float,
    tolerance: float,
    log_output: bool,
    gradients: str,
) -> tuple[Tensor, Tensor]:
    suffix = type_suffix(unary.dtype, "unary")
    _check_arguments(unary, order, start, iterations)
    _check_damping(damping, tolerance, log_output)
    tensors = _TermTensors(rows, weights, structures, norms_in, norms_out, compatibilities)
    _check_terms(unary, tensors)
    unary = contiguous_rows(unary)
    batch, points, labels = unary.shape
    out = empty_rows(unary.shape, unary.dtype)
    if start is not None:
        out.copy_(start)
    trace = empty_rows(_trace_shape(unary, iterations, gradients), unary.dtype)
    # log Q in `out` leaves no room there for the old Q that the tolerance compares with.
    watched = log_output and tolerance > 0 and trace.numel() == 0
    slots = empty_rows((1, *unary.shape), unary.dtype) if watched else trace
    threads = torch.get_num_threads()
    workspace_size = getattr(_native, f"mean_field_workspace_{suffix}")
    terms, sizes, kept = [], [], []
    for row, weight, structure, norm_in, norm_out, compatibility in zip(*tensors, strict=True):
        sizes.append(workspace_size(address(structure), labels, threads) * unary.itemsize)
        owned = [norm_in.contiguous(), norm_out.contiguous(), compatibility.contiguous()]
        kept.append(owned)
        lattice = (address(row), address(weight), address(structure))
        terms.append((lattice, address(owned[0]), address(owned[1]), compatibility.ndim, address(owned[2])))
    order = None if order is None else order.contiguous()
    options = {
        "start_from_q": start is not None,
        "iterations": iterations,
        "damping": damping,
        "tolerance": tolerance,
        "threads": threads,
        "order": address(order),
        "log_output": log_output,
        "trace": address(slots),
        "trace_slots": max(1, len(slots)),
    }
    run = getattr(_native, f"mean_field_batch_{suffix}")
    with borrowed_parts(sizes) as values:
        described = [(*term, part) for term, part in zip(terms, values, strict=True)]
        run(batch, points, labels, address(unary), address(out), described, options)
    return out, trace


def _trace_shape(unary: Tensor, iterations: int, gradients: str) -> tuple[int, ...]:
    return (iterations, *unary.shape) if gradients == "store" else (0,)


def _mean_field_fake(unary: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    iterations, gradients = arguments[8], arguments[12]
    return unary.new_empty(unary.shape), unary.new_empty(_trace_shape(unary, iterations, gradients))


register_operator("mean_field", _mean_field, _mean_field_fake, mean_field_backward, save_for_gradient)
