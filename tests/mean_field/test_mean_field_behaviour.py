"""How the engine behaves: layouts, steps, tolerance, kept lattices; the same bits whatever the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
from numpy.typing import NDArray

from deeplab_crf import MeanField, PermutohedralLattice
from deeplab_crf.core.mean_field import pack_unary


def model(points: int, labels: int, *, dtype: type = np.float32, threads: int | None = None) -> MeanField:
    """A smoothness and an appearance kernel."""
    engine = MeanField(points, labels, dtype=dtype, threads=threads)
    engine.add_kernel(samples.features(points, 2, dtype=dtype).T, 1.5)
    engine.add_kernel(samples.features(points, 5, seed=1, dtype=dtype).T, 3.0, normalization="after")
    return engine


def test_the_result_is_column_major_and_sums_to_one() -> None:
    result = model(777, 21).inference(samples.energies(21, 777), 3)
    assert result.probabilities.shape == (21, 777)
    assert result.probabilities.dtype == np.float32
    assert result.probabilities.T.flags.c_contiguous
    assert result.probabilities.flags.writeable
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1.0, atol=1e-5)
    assert result.probabilities.min() >= 0
    assert result.iterations == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("points", "labels"), [(1, 3), (333, 21), (20011, 21), (33000, 5)])
def test_same_bits_for_any_number_of_threads(points: int, labels: int, dtype: type) -> None:
    unary = samples.energies(labels, points, dtype=dtype)
    reference = model(points, labels, dtype=dtype, threads=1)
    want = reference.inference(unary, 4, damping=0.25, tolerance=1e-30)
    energy = reference.energy(unary, want.probabilities)
    for threads in (1, 2, 3, 7, None):
        engine = model(points, labels, dtype=dtype, threads=threads)
        for _ in range(2):  # and on every run
            got = engine.inference(unary, 4, damping=0.25, tolerance=1e-30)
            np.testing.assert_array_equal(got.probabilities, want.probabilities)
            assert got.change == want.change
        assert engine.energy(unary, want.probabilities) == energy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_step_at_a_time_gives_the_same_bits_as_all_at_once(damping: float, dtype: type) -> None:
    engine, unary = model(5000, 21, dtype=dtype), samples.energies(21, 5000, dtype=dtype)
    q = engine.inference(unary, 0).probabilities
    for _ in range(5):
        q = engine.inference(unary, 1, q=q, damping=damping).probabilities
    np.testing.assert_array_equal(q, engine.inference(unary, 5, damping=damping).probabilities)


def test_change_is_the_largest_change_of_a_probability() -> None:
    engine, unary = model(900, 5), samples.energies(5, 900)
    before = engine.inference(unary, 3).probabilities
    after = engine.inference(unary, 4, tolerance=1e-30)
    assert after.change == pytest.approx(float(np.abs(after.probabilities - before).max()), rel=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_tolerance_stops_early(damping: float) -> None:
    engine, unary = model(900, 5), samples.energies(5, 900)
    result = engine.inference(unary, 500, tolerance=1e-3, damping=damping)
    assert result.converged
    assert 1 < result.iterations < 500
    assert result.change <= 1e-3
    again = engine.inference(unary, result.iterations, damping=damping)
    np.testing.assert_array_equal(again.probabilities, result.probabilities)
    one_less = engine.inference(unary, result.iterations - 1, tolerance=1e-3, damping=damping)
    assert not one_less.converged
    assert one_less.iterations == result.iterations - 1
    assert one_less.change > 1e-3


def test_a_new_unary_on_kept_lattices_equals_a_new_model() -> None:
    engine = model(1500, 4)
    engine.inference(samples.energies(4, 1500, seed=1), 5)
    unary = samples.energies(4, 1500, seed=2)
    want = model(1500, 4).inference(unary, 5).probabilities
    np.testing.assert_array_equal(engine.inference(unary, 5).probabilities, want)


def test_a_given_lattice_is_used_as_it_is() -> None:
    unary = samples.energies(4, 1500)
    given, made = MeanField(1500, 4), MeanField(1500, 4)
    features = samples.features(1500, 5)
    given.add_kernel(PermutohedralLattice(features), 2.0, normalization="after")
    made.add_kernel(features.T, 2.0, normalization="after")
    np.testing.assert_array_equal(given.inference(unary, 5).probabilities, made.inference(unary, 5).probabilities)


def test_permuted_points_give_permuted_results() -> None:
    order = np.random.default_rng(0).permutation(2000)
    features, unary = samples.features(2000, 5), samples.energies(6, 2000)
    results = []
    for index in (np.arange(2000), order):
        engine = MeanField(2000, 6)
        engine.add_kernel(features[index].T, 2.0)
        results.append(engine.inference(unary[:, index], 5).probabilities)
    assert samples.scaled_error(results[1], results[0][:, order]) <= 1e-5


def _unaries(unary: NDArray[Any]) -> dict[str, NDArray[Any]]:
    labels, points = unary.shape
    wide = np.zeros((labels * 2, points * 3), unary.dtype)
    wide[1::2, 2::3] = unary
    read_only = unary.copy()
    read_only.flags.writeable = False
    packed_read_only = np.ascontiguousarray(unary.T).T
    packed_read_only.flags.writeable = False
    return {
        "packed": np.ascontiguousarray(unary.T).T,
        "packed read-only": packed_read_only,
        "strided": wide[1::2, 2::3],
        "negative strides": unary[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": read_only,
        "float64": unary.astype(np.float64),
        "byte-swapped": unary.astype(unary.dtype.newbyteorder()),
        "pack_unary": pack_unary(unary),
    }


@pytest.mark.parametrize("layout", _unaries(np.zeros((1, 1), np.float32)))
def test_layouts_and_dtypes_of_the_unary(layout: str) -> None:
    unary = samples.energies(21, 1000)
    engine = model(1000, 21)
    want = engine.inference(unary, 3).probabilities
    variant = _unaries(unary)[layout]
    copy = variant.copy()
    np.testing.assert_array_equal(engine.inference(variant, 3).probabilities, want)
    np.testing.assert_array_equal(variant, copy)  # the caller's array is left alone


def test_half_precision_unary_is_taken() -> None:
    unary = samples.energies(5, 300).astype(np.float16)
    engine = model(300, 5)
    want = engine.inference(unary.astype(np.float32), 3).probabilities
    np.testing.assert_array_equal(engine.inference(unary, 3).probabilities, want)


def test_layouts_of_the_start_and_of_features() -> None:
    unary, features = samples.energies(5, 300), samples.features(300, 3)
    q = oracle.softmax(samples.values(5, 300).astype(np.float64)).astype(np.float32)
    results = []
    for variant, start in ((features.T, q), (np.ascontiguousarray(features.T), np.asfortranarray(q))):
        engine = MeanField(300, 5)
        engine.add_kernel(variant, 2.0)
        copy = start.copy()
        results.append(engine.inference(unary, 2, q=start).probabilities)
        np.testing.assert_array_equal(start, copy)
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pack_unary(dtype: type) -> None:
    unary = samples.energies(3, 40, dtype=np.float64)
    packed = pack_unary(unary, dtype=dtype)
    assert packed.shape == (3, 40)
    assert packed.dtype == dtype
    assert packed.T.flags.c_contiguous
    assert not np.shares_memory(packed, unary)
    np.testing.assert_array_equal(packed, unary.astype(dtype))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_pack_unary_names_the_first_bad_value(value: float) -> None:
    unary = samples.energies(3, 40)
    unary[2, 17] = value
    unary[1, 30] = value
    with pytest.raises(ValueError, match=r"scores.*label 1, point 30"):
        pack_unary(unary, name="scores")
