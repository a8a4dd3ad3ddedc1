"""Slow NumPy oracle: the permutohedral lattice, mean field and their exact twins, in float64.

Written from the definition alone (Adams, Baek, Davis 2010; Kraehenbuehl & Koltun 2011), with none of the tricks of the
engine: no packed keys, no fused passes, no padding. Three levels, each the judge of the one before:

* `Lattice`: the lattice filter. Its geometry can be computed in float32 with the operation order of the engine, which
  yields the engine's vertices bit for bit; splat, blur and slice are always float64.
* `MeanField`: parallel mean field over any filters, with damping, energies and every compatibility.
* `GaussianFilter`: brute force over all pairs of points. What the lattice approximates.

Shapes: N points, d features, M vertices, C channels, L labels. Points are rows in filters, columns in mean field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NORMALIZATIONS = ("none", "before", "after", "symmetric")
EPSILON = 1e-20


# ---------------------------------------------------------------------------------------------------------------------
# Geometry
# ---------------------------------------------------------------------------------------------------------------------
def axis_scales(dimensions: int, dtype: DTypeLike) -> NDArray[Any]:
    """The factor of each feature axis, (d,): computed in double from a standard deviation rounded to ``dtype``."""
    kind = np.dtype(dtype).type
    inv_std_dev = float(kind(math.sqrt(2.0 / 3.0) * (dimensions + 1)))
    return np.array([kind(1.0 / math.sqrt((i + 2) * (i + 1)) * inv_std_dev) for i in range(dimensions)])


def elevate(features: NDArray[Any]) -> NDArray[Any]:
    """Features (N, d) placed on the hyperplane sum(e) = 0 of R^(d+1): (N, d + 1), same dtype."""
    points, dimensions = features.shape
    kind = features.dtype.type
    scales = axis_scales(dimensions, features.dtype)
    elevated = np.empty((points, dimensions + 1), features.dtype)
    running = np.zeros(points, features.dtype)
    for j in range(dimensions, 0, -1):
        scaled = features[:, j - 1] * scales[j - 1]
        elevated[:, j] = running - kind(j) * scaled
        running = running + scaled
    elevated[:, 0] = running
    return elevated


def enclosing_simplex(elevated: NDArray[Any]) -> tuple[NDArray[Any], Ints]:
    """Nearest remainder-0 point (N, d + 1), same dtype, and the rank of each coordinate (N, d + 1), 0 = largest."""
    axes = elevated.shape[1]
    kind = elevated.dtype.type
    multiples = np.rint(elevated * kind(1.0 / axes))  # half to even
    remainder0 = multiples * kind(axes)
    residual = elevated - remainder0
    rank = np.zeros(elevated.shape, np.int64)
    for i in range(axes):
        for j in range(i + 1, axes):
            smaller = residual[:, i] < residual[:, j]
            rank[:, i] += smaller
            rank[:, j] += ~smaller  # ties to the later index
    rank += multiples.sum(axis=1, keepdims=True).astype(np.int64)
    low, high = rank < 0, rank >= axes
    rank += axes * low.astype(np.int64) - axes * high.astype(np.int64)
    remainder0 = remainder0 + kind(axes) * low.astype(elevated.dtype) - kind(axes) * high.astype(elevated.dtype)
    return remainder0, rank


def barycentric_weights(elevated: NDArray[Any], remainder0: NDArray[Any], rank: Ints) -> NDArray[Any]:
    """Weights (N, d + 1) of the simplex's vertices, the one of remainder k at k. Same dtype as ``elevated``."""
    axes = elevated.shape[1]
    kind = elevated.dtype.type
    offsets = (elevated - remainder0) * kind(1.0 / axes)
    by_rank = np.empty_like(offsets)  # by_rank[:, r]: the offset of the coordinate of rank r
    np.put_along_axis(by_rank, rank, offsets, axis=1)
    weights = np.empty_like(offsets)
    weights[:, 0] = by_rank[:, axes - 1] + (kind(1.0) - by_rank[:, 0])
    for k in range(1, axes):
        weights[:, k] = by_rank[:, axes - 1 - k] - by_rank[:, axes - k]
    return weights


def vertex_keys(remainder0: NDArray[Any], rank: Ints) -> Ints:
    """First d coordinates of the d + 1 vertices around each point, (N, d + 1, d)."""
    axes = rank.shape[1]
    base = remainder0.astype(np.int64)
    vertices = [base + np.where(rank <= axes - 1 - k, k, k - axes) for k in range(axes)]
    return np.stack(vertices, axis=1)[:, :, :-1]


class _VertexTable:
    """Distinct keys, and where a key is found. A linear hash does the search; every answer is checked on the keys."""

    def __init__(self, keys: Ints) -> None:
        """keys: (..., d)."""
        rows = keys.reshape(-1, keys.shape[-1])
        generator = np.random.default_rng(20111212)
        self._multipliers = generator.integers(1, 2**63 - 1, rows.shape[1], dtype=np.int64) | 1
        hashes = self._hash(rows)
        self._hashes, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        self.keys: Ints = rows[first]
        self.index: Ints = inverse.reshape(keys.shape[:-1])
        if not np.array_equal(self.keys[inverse.reshape(-1)], rows):
            raise AssertionError("the oracle's hash collided: change its seed")

    def _hash(self, rows: Ints) -> Ints:
        with np.errstate(over="ignore"):
            return (rows * self._multipliers).sum(axis=1)

    def find(self, rows: Ints) -> Ints:
        """Index of each row (R, d), or -1."""
        hashes = self._hash(rows)
        slot = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where((self.keys[slot] == rows).all(axis=1), slot, -1)


def _neighbours(table: _VertexTable) -> list[tuple[Ints, Ints]]:
    """For each of the d + 1 blur axes the previous and the next vertex of every vertex, (M,) each, -1 where missing."""
    dimensions = table.keys.shape[1]
    result = []
    for axis in range(dimensions + 1):
        step = np.ones(dimensions, np.int64)
        if axis < dimensions:
            step[axis] = -dimensions
        result.append((table.find(table.keys - step), table.find(table.keys + step)))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Filters
# ---------------------------------------------------------------------------------------------------------------------
class LinearOperator(Protocol):
    """What normalisation and mean field need: K V and K^T V for values (N, C)."""

    def apply(self, values: Floats, *, transpose: bool = False) -> Floats:
        """The operator, without normalisation."""


class Lattice:
    """The lattice filter over ``features`` (N, d), with geometry computed in ``dtype``."""

    def __init__(self, features: ArrayLike, dtype: DTypeLike = np.float64, *, touch_origin: bool = False) -> None:
        """features: (N, d), N and d >= 1. touch_origin: vertices around the origin exist without a point."""
        array = np.ascontiguousarray(features, dtype=dtype)
        points = len(array)
        if touch_origin:
            array = np.concatenate([array, np.zeros((1, array.shape[1]), dtype)])
        elevated = elevate(array)
        remainder0, rank = enclosing_simplex(elevated)
        self.weights: Floats = barycentric_weights(elevated, remainder0, rank).astype(np.float64)[:points]
        table = _VertexTable(vertex_keys(remainder0, rank))
        self.keys = table.keys
        self.index = table.index[:points]
        self.neighbours = _neighbours(table)

    @property
    def num_vertices(self) -> int:
        """M: the vertices that a point touches."""
        return len(self.keys)

    def splat(self, values: Floats) -> Floats:
        """(N, C) -> (M, C)."""
        vertices = np.zeros((self.num_vertices, values.shape[1]))
        for k in range(self.index.shape[1]):
            np.add.at(vertices, self.index[:, k], self.weights[:, k, None] * values)
        return vertices

    def blur(self, vertices: Floats, *, reverse: bool = False) -> Floats:
        """(M, C) -> (M, C): v + (previous + next) / 2 along one axis after the other."""
        for previous, following in self.neighbours[:: -1 if reverse else 1]:
            padded = np.concatenate([vertices, np.zeros((1, vertices.shape[1]))])  # row -1: a missing neighbour
            vertices = vertices + 0.5 * (padded[previous] + padded[following])
        return vertices

    def slice(self, vertices: Floats) -> Floats:
        """(M, C) -> (N, C)."""
        dimensions = self.keys.shape[1]
        gathered = np.einsum("nk,nkc->nc", self.weights, vertices[self.index])
        return gathered / (1.0 + 2.0**-dimensions)

    def apply(self, values: Floats, *, transpose: bool = False) -> Floats:
        """L V, or L^T V."""
        return self.slice(self.blur(self.splat(values), reverse=transpose))


class GaussianFilter:
    """The exact filter: K_ij = exp(-|f_i - f_j|^2 / 2), self included. N^2 memory."""

    def __init__(self, features: ArrayLike) -> None:
        """features: (N, d)."""
        array = np.asarray(features, np.float64)
        square = (array**2).sum(axis=1)
        distance = square[:, None] + square[None, :] - 2.0 * array @ array.T
        self.matrix: Floats = np.exp(-0.5 * np.maximum(distance, 0.0))

    def apply(self, values: Floats, *, transpose: bool = False) -> Floats:
        """K V. The matrix is symmetric, so the transpose is the same."""
        return self.matrix @ values


def normalized_filter(
    operator: LinearOperator, values: ArrayLike, normalization: str = "none", *, transpose: bool = False
) -> Floats:
    """The filter of values (N,) or (N, C) in one of the four normalisations, or the transpose of that operator."""
    array = np.asarray(values, np.float64)
    columns = array.reshape(len(array), -1)
    if normalization == "none":
        return operator.apply(columns, transpose=transpose).reshape(array.shape)
    total = operator.apply(np.ones((len(array), 1))) + EPSILON
    first = {"before": 1.0 / total, "after": np.ones_like(total), "symmetric": total**-0.5}[normalization]
    last = {"before": np.ones_like(total), "after": 1.0 / total, "symmetric": total**-0.5}[normalization]
    if transpose:
        first, last = last, first
    return (last * operator.apply(first * columns, transpose=transpose)).reshape(array.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Mean field
# ---------------------------------------------------------------------------------------------------------------------
def softmax(logits: Floats) -> Floats:
    """Over labels, the first axis."""
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=0, keepdims=True)
    return result


def apply_compatibility(compat: ArrayLike, message: Floats) -> Floats:
    """What a kernel adds to the energy for its message K Q (L, N): a number w gives -w KQ, (L,) +v KQ, (L, L) +M KQ."""
    array = np.asarray(compat, np.float64)
    if array.ndim == 0:
        return -array * message
    if array.ndim == 1:
        return array[:, None] * message
    return array @ message


@dataclass
class MeanField:
    """A fully connected CRF: unary energies (L, N) and kernels as (operator, compatibility, normalisation)."""

    unary: Floats
    kernels: list[tuple[LinearOperator, ArrayLike, str]] = field(default_factory=list)

    def pairwise(self, q: Floats) -> Floats:
        """sum_m mu_m (K_m Q), (L, N)."""
        total = np.zeros_like(q)
        for operator, compat, normalization in self.kernels:
            total += apply_compatibility(compat, normalized_filter(operator, q.T, normalization).T)
        return total

    def start(self) -> Floats:
        """softmax(-U)."""
        return softmax(-np.asarray(self.unary, np.float64))

    def step(self, q: Floats, damping: float = 0.0) -> Floats:
        """One parallel update."""
        new = softmax(-np.asarray(self.unary, np.float64) - self.pairwise(q))
        return (1.0 - damping) * new + damping * q

    def run(self, iterations: int, *, q: ArrayLike | None = None, damping: float = 0.0) -> Floats:
        """``iterations`` updates from ``q``, or from softmax(-U)."""
        current = self.start() if q is None else np.asarray(q, np.float64)
        for _ in range(iterations):
            current = self.step(current, damping)
        return current

    def energy_terms(self, q: ArrayLike) -> tuple[float, float, float]:
        """sum Q log max(Q, 1e-20), sum U Q and sum Q (mu K Q)."""
        array = np.asarray(q, np.float64)
        entropy = float((array * np.log(np.maximum(array, EPSILON))).sum())
        unary = float((np.asarray(self.unary, np.float64) * array).sum())
        return entropy, unary, float((array * self.pairwise(array)).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------
def gaussian_features(height: int, width: int, sxy: ArrayLike, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """(x / sx, y / sy) of every pixel, row by row: (H * W, 2)."""
    sx, sy = np.broadcast_to(np.asarray(sxy, dtype), 2)
    rows, columns = np.mgrid[:height, :width].astype(dtype)
    return np.stack([columns / sx, rows / sy], axis=-1).reshape(-1, 2)


def bilateral_features(
    image: NDArray[Any], sxy: ArrayLike, srgb: ArrayLike, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """(x / sx, y / sy, channels / srgb) of an image (H, W) or (H, W, c): (H * W, 2 + c)."""
    planes = image.reshape(image.shape[0], image.shape[1], -1).astype(dtype)
    widths = np.broadcast_to(np.asarray(srgb, dtype), planes.shape[-1])
    colours = (planes / widths).reshape(-1, planes.shape[-1])
    return np.concatenate([gaussian_features(image.shape[0], image.shape[1], sxy, dtype), colours], axis=1)
