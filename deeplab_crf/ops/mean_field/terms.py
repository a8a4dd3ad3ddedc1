"""The arguments of mean field, as the operators hand them to the kernels of a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_crf.core.pairwise import LARGEST_STRENGTH


class TermTensors(NamedTuple):
    """The kernels of the energy, one entry each. Norms without elements stand for ones."""

    rows: list[Tensor]
    weights: list[Tensor]
    structures: list[Tensor]
    norms_in: list[Tensor]
    norms_out: list[Tensor]
    compatibilities: list[Tensor]


class Settings(NamedTuple):
    """What one run of the iterations is to do. keep_trace: whether it leaves Q of each of them."""

    iterations: int
    damping: float
    tolerance: float
    log_output: bool
    keep_trace: bool

    def trace_shape(self, unary: Tensor) -> tuple[int, ...]:
        """Of the trace: ``(T, B, N, L)``, or without elements."""
        return (self.iterations, *unary.shape) if self.keep_trace else (0,)


class AdjointInputs(NamedTuple):
    """What the derivative of one run of the iterations starts from, and how it was run.

    grad, out: ``(B, N, L)``. trace: Q of every iteration, ``(T, B, N, L)``, or with ``fixed_point`` the one Q ``(B, N, L)`` that
    all are taken to be. from_start: whether a gradient in a given start is wanted.
    """

    grad: Tensor
    out: Tensor
    trace: Tensor
    order: Tensor | None
    iterations: int
    tolerance: float
    log_output: bool
    from_start: bool
    fixed_point: bool


class TermGradients(NamedTuple):
    """Where the gradients of the kernels go, one entry each; without elements where they are not needed."""

    weights: list[Tensor]
    norms_in: list[Tensor]
    norms_out: list[Tensor]
    compatibilities: list[Tensor]


def check_finite(compatibilities: Iterable[Tensor]) -> None:
    """Raises ValueError for NaN, inf, and numbers so large that energies would overflow. On a device this waits for it."""
    if not all(bool((compatibility.abs() <= LARGEST_STRENGTH).all()) for compatibility in compatibilities):
        raise ValueError(
            f"compatibilities must be finite and at most {LARGEST_STRENGTH:g} in magnitude; got NaN, inf or more. Check the "
            "weights of the kernels"
        )


def check_order_shape(order: Tensor, points: int) -> None:
    """Raises ValueError unless ``order`` is int32 ``(N,)``."""
    if order.dtype != torch.int32 or tuple(order.shape) != (points,):
        raise ValueError(f"order must be int32 of shape ({points},); got {order.dtype} of shape {tuple(order.shape)}")


def own_order(order: Tensor, points: int) -> Tensor:
    """A contiguous copy of ``order``, checked: another thread may write to the tensor after a check, and kernels read and write
    where it says."""
    copy = order.clone(memory_format=torch.contiguous_format)
    check_order(copy, points)
    return copy


def check_order(order: Tensor, points: int) -> None:
    """Raises ValueError unless ``order`` holds numbers of points. On a device this waits for it."""
    low, high = (int(value) for value in torch.aminmax(order))
    if low < 0 or high >= points:
        raise ValueError(f"order must hold each of 0..{points - 1}; got {low}..{high}")
