"""Mean field inference as an operator (Kraehenbuehl & Koltun, NIPS 2011, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeplab_crf.ops.lattice.operators import Lattice
from deeplab_crf.ops.library import register_operator
from deeplab_crf.ops.mean_field import cpu, cuda
from deeplab_crf.ops.mean_field.backward import mean_field_backward, save_for_gradient
from deeplab_crf.ops.mean_field.checks import check_scores, check_terms
from deeplab_crf.ops.mean_field.terms import Settings, TermTensors
from deeplab_crf.ops.tensors import check_like, check_shape, type_suffix

# Of what is damped, and of a start, only probabilities are at hand, and those below 1e-30 or so are 0.
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


class Updates(NamedTuple):
    """How an update is done and when an image stops.

    damping in [0, 1): ``Q <- (1 - damping) new + damping old``. tolerance: an image stops after the iteration in which none of its
    probabilities moved by more; 0 does them all.
    """

    damping: float = 0.0
    tolerance: float = 0.0


PLAIN_UPDATES = Updates()


def mean_field(
    unary: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    *,
    order: Tensor | None = None,
    start: Tensor | None = None,
    updates: Updates = PLAIN_UPDATES,
    log_output: bool = True,
    gradients: str = "store",
) -> Tensor:
    """``Q <- softmax(-U - sum_m C_m K_m Q)`` from ``start`` or ``Q = softmax(-U)``, all points of an image at once.

    unary: energies U ``(B, N, L)``. order: int32 ``(N,)``, the row of ``unary`` that each point of the lattices stands for, or
    None. start: a Q ``(B, N, L)``, its rows as those of ``unary``. updates: damping and tolerance. Returns log Q (taken from the
    energies, so it does not underflow; from Q with damping, and from a start without iterations), or Q, ``(B, N, L)``.

    gradients: how the backward pass, where one is needed, comes by the Q of every iteration, T of them:
      "store": kept in the forward pass. Memory T·B·N·L.
      "recompute": every ceil(sqrt(T))-th is kept, the others are computed again, a stretch at a time. Memory about 2·sqrt(T)·B·N·L,
        time one more forward pass.
      "implicit": the result is taken for the fixed point, whose derivative solves a linear equation by T steps (or to
        ``tolerance``). Memory B·N·L; exact where the iteration has converged. The one that damping and tolerance go with.
    """
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}; got {gradients!r}")
    tensors = _tensors_of(terms, unary)
    differentiable = [unary, start, *tensors.weights, *tensors.norms_in, *tensors.norms_out, *tensors.compatibilities]
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)):
        gradients = "none"
    damping, tolerance = updates
    from_energies = damping == 0 and (iterations > 0 or start is None)
    stretch = max(1, iterations)
    if gradients == "recompute":
        stretch = max(1, math.ceil(math.sqrt(iterations)))
    result = start
    for done in range(0, max(1, iterations), stretch):
        steps = min(stretch, iterations - done)
        log = log_output and done + steps == iterations and from_energies
        result, _ = torch.ops.deeplab_crf.mean_field(
            unary, *tensors, order, result, steps, damping, tolerance, log, gradients
        )
    assert result is not None  # the loop runs once at least
    if log_output and not from_energies:
        return result.clamp_min(_SMALLEST_PROBABILITY).log()
    return result


def _tensors_of(terms: Sequence[PairwiseTerm], unary: Tensor) -> TermTensors:
    ones = unary.new_empty(0)
    return TermTensors(
        [term.lattice.rows for term in terms],
        [term.lattice.weights for term in terms],
        [term.lattice.structure for term in terms],
        [ones if term.norm_in is None else term.norm_in for term in terms],
        [ones if term.norm_out is None else term.norm_out for term in terms],
        [term.compatibility for term in terms],
    )


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
    kernels: ModuleType,
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
    type_suffix(unary.dtype, "unary")
    check_scores(unary, "unary", order, iterations)
    if start is not None:
        check_like(start, unary, "start", "unary")
        check_shape(start, unary.shape, "start")
    _check_damping(damping, tolerance, log_output)
    if log_output and start is not None and iterations == 0:
        raise ValueError("log_output must be False with a start and no iteration, which leaves it as it is; got True")
    tensors = TermTensors(rows, weights, structures, norms_in, norms_out, compatibilities)
    check_terms(kernels, unary, "unary", tensors)
    settings = Settings(iterations, damping, tolerance, log_output, keep_trace=gradients == "store")
    result: tuple[Tensor, Tensor] = kernels.mean_field(unary, tensors, order, start, settings)
    return result


def _mean_field_fake(unary: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *_, iterations, damping, tolerance, log_output, gradients = arguments
    settings = Settings(iterations, damping, tolerance, log_output, keep_trace=gradients == "store")
    return unary.new_empty(unary.shape), unary.new_empty(settings.trace_shape(unary))


register_operator(
    "mean_field(Tensor unary, Tensor[] rows, Tensor[] weights, Tensor[] structures, Tensor[] norms_in, "
    "Tensor[] norms_out, Tensor[] compatibilities, Tensor? order, Tensor? start, int iterations, float "
    "damping, float tolerance, bool log_output, str gradients) -> (Tensor out, Tensor trace)",
    partial(_mean_field, cpu),
    _mean_field_fake,
    mean_field_backward,
    save_for_gradient,
    partial(_mean_field, cuda),
)
