"""The same CRF by brute force over all pairs of points: ground truth for the lattice, in plain torch on any device.

One filter visits N^2 pairs, about 10 ns each on a processor core: 10,000 points take a second a kernel and iteration, a 500 x 375
photograph six minutes. Memory stays at a few tiles of ``chunk`` pairs, in the backward pass too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Pairs of points a tile: 4 MiB of float32 for each of its temporaries.
DEFAULT_CHUNK = 2**20

# Keeps 1 / s finite where no weight reaches a point; the lattice's constant.
_NORM_EPSILON = 1e-20


def exact_filter(values: Tensor, features: Tensor, *, chunk: int = DEFAULT_CHUNK) -> Tensor:
    """``out_i = sum_j exp(-|f_i - f_j|^2 / 2) values_j``, j = i included: what the lattice approximates.

    values: ``(N, C)``. features: ``(N, d)`` of the same dtype, divided by their standard deviations. chunk: pairs of points that
    are in memory at a time. Differentiable in both; the backward pass computes each tile again instead of keeping it. Returns
    ``(N, C)``.
    """
    rows = max(1, chunk // max(1, len(features)))
    tiles = [
        checkpoint(_filter_tile, tile, features, values, use_reentrant=False, preserve_rng_state=False)
        for tile in torch.split(features, rows)
    ]
    return torch.cat(tiles)


def _filter_tile(tile: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """The filter's rows for the points of ``tile``."""
    # Not by a matrix product: in float32 |f|^2 + |g|^2 - 2 fg loses the small distances, which count most.
    distances = torch.cdist(tile, features, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-0.5 * distances.square()) @ values


def compatible(message: Tensor, compatibility: Tensor) -> Tensor:
    """What a message ``K Q`` ``(..., L)`` adds to the energies: ``-w KQ`` for a number w (Potts), ``+ c * KQ`` for ``(L,)``,
    ``+ C @ KQ`` for ``(L, L)``."""
    if compatibility.ndim == 0:
        return -compatibility * message
    return compatibility * message if compatibility.ndim == 1 else message @ compatibility.T


def updated(unary: Tensor, pairwise: Tensor, log_q: Tensor, damping: float) -> Tensor:
    """One mean field update, ``log((1 - damping) softmax(-unary - pairwise) + damping Q)``, from ``log_q`` = log Q. All
    ``(..., L)``."""
    fresh = torch.log_softmax(-unary - pairwise, dim=-1)
    if damping == 0:
        return fresh
    return torch.logaddexp(fresh + math.log1p(-damping), log_q + math.log(damping))


class ExactKernel:
    """A normalised exact filter ``K`` over the points of one image.

    features: ``(N, d)``. normalization: as everywhere, with s = K(1) of the exact filter ("none" has no scale of its own here; the
    lattice's has). chunk: as in `exact_filter`.
    """

    def __init__(self, features: Tensor, normalization: str, chunk: int = DEFAULT_CHUNK) -> None:
        self._features = features
        self._chunk = chunk
        self._before: Tensor | None = None
        self._after: Tensor | None = None
        if normalization == "none":
            return
        sums = exact_filter(features.new_ones(len(features), 1), features, chunk=chunk) + _NORM_EPSILON
        norm = sums.rsqrt() if normalization == "symmetric" else sums.reciprocal()
        self._before = norm if normalization in ("before", "symmetric") else None
        self._after = norm if normalization in ("after", "symmetric") else None

    def __call__(self, values: Tensor) -> Tensor:
        """``K values``, ``(N, C)``."""
        if self._before is not None:
            values = self._before * values
        message = exact_filter(values, self._features, chunk=self._chunk)
        return message if self._after is None else self._after * message


def exact_mean_field(
    unary: Tensor,
    features: Sequence[Tensor],
    normalizations: Sequence[str],
    compatibilities: Sequence[Tensor],
    iterations: int,
    *,
    damping: float = 0.0,
    tolerance: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean field (Kraehenbuehl & Koltun, NIPS 2011, algorithm 1) with exact filters.

    unary: energies ``(B, N, L)``, float32 or float64. features: for each kernel ``(B, N, d)``, divided by their standard
    deviations. normalizations: for each kernel "none", "before", "after" or "symmetric". compatibilities: for each kernel as in
    `compatible`. damping in [0, 1): ``Q <- (1 - damping) new + damping old``. tolerance: an image stops after the iteration in
    which none of its probabilities moved by more; 0 does them all. mask: bool ``(B, N)``, True takes part; the others' result is
    ``log_softmax(-unary)``. Returns log Q ``(B, N, L)``, differentiable in unary, features and compatibilities.
    """
    results = []
    for image, energies in enumerate(unary):
        part = (
            mask[image].nonzero().squeeze(-1) if mask is not None else torch.arange(len(energies), device=unary.device)
        )
        kernels = [
            ExactKernel(points[image, part], normalization)
            for points, normalization in zip(features, normalizations, strict=True)
        ]
        refined = _one_image(energies[part], kernels, compatibilities, iterations, damping, tolerance)
        results.append(torch.log_softmax(-energies, dim=-1).index_copy(0, part, refined))
    return torch.stack(results) if results else unary.new_empty(unary.shape)


def _one_image(
    unary: Tensor,
    kernels: Sequence[ExactKernel],
    compatibilities: Sequence[Tensor],
    iterations: int,
    damping: float,
    tolerance: float,
) -> Tensor:
    """log Q ``(N, L)`` of one image from its energies ``(N, L)``."""
    log_q = torch.log_softmax(-unary, dim=-1)
    if not kernels or not len(unary):
        return log_q
    for _ in range(iterations):
        before = log_q.exp()
        pairwise = torch.zeros_like(unary)
        for kernel, compatibility in zip(kernels, compatibilities, strict=True):
            pairwise = pairwise + compatible(kernel(before), compatibility)
        log_q = updated(unary, pairwise, log_q, damping)
        if tolerance > 0 and float((log_q.exp() - before).detach().abs().max()) <= tolerance:
            break
    return log_q
