"""What must hold for any input: linearity, transpose, invariants, order of points; the same bits on every run."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import oracle
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deeplab_crf import PermutohedralLattice

seeds = st.integers(0, 2**20)
dimension_counts = st.integers(1, 7)
point_counts = st.integers(1, 600)
channel_counts = st.integers(1, 40)
normalizations = st.sampled_from(oracle.NORMALIZATIONS)
dtypes = st.sampled_from([np.float32, np.float64])


@given(seeds, dimension_counts, point_counts, channel_counts, normalizations, dtypes, st.booleans())
def test_any_input_equals_the_oracle(
    seed: int, dimensions: int, points: int, channels: int, normalization: str, dtype: type, transpose: bool
) -> None:
    features = samples.features(points, dimensions, seed, dtype)
    values = samples.values(points, channels, seed, dtype)
    lattice, judge = PermutohedralLattice(features), oracle.Lattice(features, dtype)
    assert lattice.num_vertices == judge.num_vertices
    got = lattice.filter(values, normalization=normalization, transpose=transpose)
    want = oracle.normalized_filter(judge, values, normalization, transpose=transpose)
    assert samples.scaled_error(got, want) <= samples.TOLERANCE[np.dtype(dtype)]


@given(seeds, dimension_counts, point_counts, normalizations, st.floats(-3, 3), st.floats(-3, 3))
def test_linearity(seed: int, dimensions: int, points: int, normalization: str, a: float, b: float) -> None:
    lattice = PermutohedralLattice(samples.features(points, dimensions, seed, np.float64))
    first, second = (samples.values(points, 3, seed + k, np.float64) for k in (1, 2))
    together = lattice.filter(a * first + b * second, normalization=normalization)
    apart = a * lattice.filter(first, normalization=normalization) + b * lattice.filter(
        second, normalization=normalization
    )
    assert samples.scaled_error(together, apart) <= 1e-12


@given(seeds, dimension_counts, point_counts, normalizations)
def test_transpose_identity(seed: int, dimensions: int, points: int, normalization: str) -> None:
    """<a, K b> = <K^T a, b> for every normalisation."""
    lattice = PermutohedralLattice(samples.features(points, dimensions, seed, np.float64))
    a, b = (samples.values(points, 2, seed + k, np.float64) for k in (1, 2))
    forward = float((a * lattice.filter(b, normalization=normalization)).sum())
    backward = float((lattice.filter(a, normalization=normalization, transpose=True) * b).sum())
    scale = float(np.abs(a).sum() * np.abs(b).max()) * float(lattice.filter(np.ones(points)).max())
    assert abs(forward - backward) <= 1e-12 * max(1.0, scale)


def test_blurring_is_not_symmetric_so_the_transpose_is_its_own_thing() -> None:
    lattice = PermutohedralLattice(samples.features(500, 5, dtype=np.float64))
    values = samples.values(500, 3, dtype=np.float64)
    assert samples.scaled_error(lattice.filter(values), lattice.filter(values, transpose=True)) > 1e-6


@given(seeds, dimension_counts, point_counts, dtypes)
def test_what_each_normalisation_keeps(seed: int, dimensions: int, points: int, dtype: type) -> None:
    """With s = L(1): "after" keeps 1, "before" keeps s, "symmetric" keeps sqrt(s)."""
    lattice = PermutohedralLattice(samples.features(points, dimensions, seed, dtype))
    total = lattice.filter(np.ones(points, dtype))
    assert total.min() > 0
    for normalization, kept in (("after", np.ones_like(total)), ("before", total), ("symmetric", np.sqrt(total))):
        error = samples.scaled_error(lattice.filter(kept, normalization=normalization), kept)
        assert error <= 2 * samples.TOLERANCE[np.dtype(dtype)]


@given(seeds, dimension_counts, point_counts, normalizations)
def test_positive_values_stay_positive(seed: int, dimensions: int, points: int, normalization: str) -> None:
    lattice = PermutohedralLattice(samples.features(points, dimensions, seed, np.float64))
    values = np.abs(samples.values(points, 2, seed, np.float64))
    assert lattice.filter(values, normalization=normalization).min() > 0


@given(seeds, dimension_counts, point_counts, normalizations)
def test_order_of_points_does_not_matter(seed: int, dimensions: int, points: int, normalization: str) -> None:
    features = samples.features(points, dimensions, seed)
    values = samples.values(points, 4, seed)
    order = np.random.default_rng(seed).permutation(points)
    lattice, shuffled = PermutohedralLattice(features), PermutohedralLattice(features[order])
    assert lattice.num_vertices == shuffled.num_vertices
    straight = lattice.filter(values, normalization=normalization)
    assert samples.scaled_error(shuffled.filter(values[order], normalization=normalization), straight[order]) <= 1e-5


@given(seeds, dimension_counts, point_counts, channel_counts)
def test_channels_do_not_touch_each_other(seed: int, dimensions: int, points: int, channels: int) -> None:
    """Each column equals its run alone to rounding, whatever lies beside it: padding never leaks."""
    lattice = PermutohedralLattice(samples.features(points, dimensions, seed))
    values = samples.values(points, channels, seed)
    alone = lattice.filter(values[:, channels - 1])
    values[:, : channels - 1] *= 1e6
    assert samples.scaled_error(lattice.filter(values)[:, channels - 1], alone) <= 1e-5


def _filter_all(features: NDArray[Any], values: NDArray[Any], threads: int | None) -> list[NDArray[Any]]:
    lattice = PermutohedralLattice(features, threads=threads)
    results = [lattice.filter(values, normalization=name) for name in oracle.NORMALIZATIONS]
    return [*results, lattice.filter(values, normalization="symmetric", transpose=True)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("points", "dimensions", "channels"), [(1, 5, 3), (333, 2, 21), (20011, 5, 21), (40000, 2, 4)])
def test_same_bits_for_any_number_of_threads(points: int, dimensions: int, channels: int, dtype: type) -> None:
    features = samples.features(points, dimensions, dtype=dtype)
    values = samples.values(points, channels, dtype=dtype)
    reference = _filter_all(features, values, 1)
    for threads in (1, 2, 3, 7, None):  # 1 again: the same bits on every run
        for got, want in zip(_filter_all(features, values, threads), reference, strict=True):
            np.testing.assert_array_equal(got, want)


def test_one_lattice_serves_two_python_threads() -> None:
    lattice = PermutohedralLattice(samples.features(30000, 5), threads=2)
    inputs = [samples.values(30000, 8, seed=k) for k in range(4)]
    wanted = [lattice.filter(values, normalization="symmetric") for values in inputs]
    got: list[NDArray[Any] | None] = [None] * len(inputs)

    def work(position: int) -> None:
        for _ in range(5):
            got[position] = lattice.filter(inputs[position], normalization="symmetric")

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result, want in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(result, want)
