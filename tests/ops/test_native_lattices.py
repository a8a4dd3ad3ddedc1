"""Batches of packed lattices: the filter against single lattices, its gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_batch import Lattices, address
from numpy.typing import NDArray

from deeplab_crf import PermutohedralLattice, _native

DIMENSIONS = [1, 2, 3, 5]
# One chunk of points, and four.
POINTS = [300, 9000]


def features(batch: int, points: int, dims: int, dtype: type = np.float64, seed: int = 0) -> NDArray[Any]:
    """(B, N, d), dense enough for neighbours along every axis."""
    return np.random.default_rng(seed).normal(0, 1.5, (batch, points, dims)).astype(dtype)


def values(*shape: int, dtype: type = np.float64, seed: int = 1) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("dims", DIMENSIONS)
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_each_image_has_the_bits_of_a_lattice_of_its_own(
    dims: int, points: int, batch: int, threads: int, dtype: type
) -> None:
    many, inputs = features(batch, points, dims, dtype), values(batch, points, 5, dtype=dtype)
    lattices = Lattices(many, threads)
    for transpose in (False, True):
        got = lattices.filter(inputs, transpose=transpose)
        for image in range(batch):
            single = PermutohedralLattice(many[image])
            assert lattices.num_vertices[image] == single.num_vertices
            np.testing.assert_array_equal(got[image], single.filter(inputs[image], transpose=transpose))


def test_features_of_any_strides() -> None:
    plain = features(2, 200, 3)
    shuffled = np.asfortranarray(plain)[::-1, ::-1]
    want, got = Lattices(np.ascontiguousarray(shuffled)), Lattices(shuffled)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.structure, want.structure)
    grad = values(2, 200, 4)
    np.testing.assert_array_equal(got.embed_gradient(grad), want.embed_gradient(grad))


def test_sizes_are_read_from_the_structure() -> None:
    lattices = Lattices(features(2, 200, 3))
    length = lattices.structure.size
    assert _native.lattice_sizes(address(lattices.structure), length) == (200, 3, lattices.num_vertices)
    for wrong_length in (0, 3, 5, length - 1, length + 1):
        with pytest.raises(ValueError, match=f"structure must be what lattice_build returned.*{wrong_length} integers"):
            _native.lattice_sizes(address(lattices.structure), wrong_length)
    other = np.ones(length, np.int32)
    with pytest.raises(ValueError, match="structure must be what lattice_build returned"):
        _native.lattice_sizes(address(other), length)


def test_a_bad_image_is_named() -> None:
    many = features(3, 50, 2)
    many[1, 7, 0] = np.nan
    with pytest.raises(ValueError, match=r"image 1: features must be finite; got nan at point 7"):
        Lattices(many, 2)


def step_of(direction: NDArray[Any], size: float = 1e-6) -> NDArray[Any]:
    return size * direction


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("dims", DIMENSIONS)
@pytest.mark.parametrize("transpose", [False, True])
def test_weight_gradient_against_finite_differences(dims: int, points: int, transpose: bool) -> None:
    """The weights move on their own: rows and chains stay as they are."""
    lattices = Lattices(features(2, points, dims))
    inputs, grad = values(2, points, 7), values(2, points, 7, seed=2)
    gradient = lattices.weight_gradient(inputs, grad, transpose=transpose)
    direction = values(*lattices.weights.shape, seed=3)
    plain = lattices.weights
    sums = []
    for sign in (1, -1):
        lattices.weights = plain + sign * step_of(direction)
        sums.append((grad * lattices.filter(inputs, transpose=transpose)).sum())
    np.testing.assert_allclose((gradient * direction).sum(), (sums[0] - sums[1]) / 2e-6, rtol=1e-6)


def test_weight_gradient_entry_by_entry() -> None:
    lattices = Lattices(features(1, 12, 2))
    inputs, grad = values(1, 12, 3), values(1, 12, 3, seed=2)
    gradient = lattices.weight_gradient(inputs, grad)
    plain = lattices.weights
    for index in np.ndindex(plain.shape):
        sums = []
        for sign in (1, -1):
            lattices.weights = plain.copy()
            lattices.weights[index] += sign * 1e-6
            sums.append((grad * lattices.filter(inputs)).sum())
        np.testing.assert_allclose(gradient[index], (sums[0] - sums[1]) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("channels", [1, 3, 8, 21, 60, 150])
def test_weight_gradient_for_every_kind_of_row(channels: int) -> None:
    """Rows of one element, of one vector, of several, of several blocks: the sum over the channels is one."""
    lattices = Lattices(features(1, 200, 3))
    inputs, grad = values(1, 200, channels), values(1, 200, channels, seed=2)
    apart = sum(
        lattices.weight_gradient(
            np.ascontiguousarray(inputs[..., c : c + 1]), np.ascontiguousarray(grad[..., c : c + 1])
        )
        for c in range(channels)
    )
    np.testing.assert_allclose(lattices.weight_gradient(inputs, grad), apart, rtol=1e-10, atol=1e-10)


def inside_simplices(lattices: Lattices, margin: float) -> NDArray[Any]:
    """(B, N): whether no weight is closer to a face than margin."""
    return lattices.weights.min(axis=2) > margin


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("dims", [*DIMENSIONS, 9])
def test_embed_gradient_against_finite_differences(dims: int, points: int) -> None:
    many = features(2, points, dims)
    lattices = Lattices(many)
    grad, direction = values(*lattices.weights.shape), values(*many.shape, seed=3)
    there, back = Lattices(many + step_of(direction)), Lattices(many - step_of(direction))
    moves = (grad * (there.weights - back.weights)).sum(axis=2) / 2e-6
    inside = inside_simplices(lattices, 1e-4)
    assert inside.mean() > 0.9
    got = (lattices.embed_gradient(grad) * direction).sum(axis=2)
    np.testing.assert_allclose(got[inside], moves[inside], rtol=1e-5, atol=1e-6)


def test_embed_gradient_takes_the_simplex_of_the_build() -> None:
    """Far from zero float32 features are embedded in double; float32 arithmetic would find other simplices."""
    far = (features(1, 2000, 3) + 30000).astype(np.float32)
    lattices = Lattices(far)
    exact = Lattices(far.astype(np.float64))
    np.testing.assert_allclose(lattices.weights, exact.weights, atol=1e-6)
    grad = values(*lattices.weights.shape)
    np.testing.assert_allclose(
        lattices.embed_gradient(grad.astype(np.float32)), exact.embed_gradient(grad), rtol=1e-4, atol=1e-5
    )


def test_the_number_of_threads_does_not_show() -> None:
    many, inputs, grad = features(3, 9000, 3), values(3, 9000, 40), values(3, 9000, 40, seed=2)
    single, double, quadruple = (Lattices(many, threads) for threads in (1, 2, 4))
    weights = single.weight_gradient(inputs, grad)
    for other in (double, quadruple):
        np.testing.assert_array_equal(other.structure, single.structure)
        np.testing.assert_array_equal(other.rows, single.rows)
        np.testing.assert_array_equal(other.weight_gradient(inputs, grad), weights)
        np.testing.assert_array_equal(other.embed_gradient(weights), single.embed_gradient(weights))
