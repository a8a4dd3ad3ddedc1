"""Mean field against the float64 oracle: labels, points, kernels, compatibilities, normalisations, start, damping."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deeplab_crf import MeanField, PermutohedralLattice

DTYPES = [np.float32, np.float64]
LABELS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 21, 24, 25, 31, 32, 33, 48, 64, 65, 150]
POINTS = [1, 2, 15, 16, 17, 31, 33, 63, 65, 255, 257, 1023, 1025, 4097, 16383, 16385]


def both(
    features: list[NDArray[Any]], compats: list[Any], normalizations: list[str], unary: NDArray[Any]
) -> tuple[MeanField, oracle.MeanField]:
    """The engine and the oracle over the same kernels; features are (N, d)."""
    labels, points = unary.shape
    engine = MeanField(points, labels, dtype=unary.dtype)
    judge = oracle.MeanField(unary)
    for points_features, compat, normalization in zip(features, compats, normalizations, strict=True):
        engine.add_kernel(points_features.T, compat, normalization=normalization)
        judge.kernels.append((oracle.Lattice(points_features, unary.dtype), compat, normalization))
    return engine, judge


def potts(labels: int, points: int, dtype: type = np.float32, normalization: str = "symmetric") -> Any:
    """A smoothness and an appearance kernel, Potts, as DeepLab has them; and the unary."""
    unary = samples.energies(labels, points, dtype=dtype)
    features = [samples.features(points, 2, dtype=dtype), samples.features(points, 5, seed=1, dtype=dtype)]
    return (*both(features, [1.5, 3.0], [normalization] * 2, unary), unary)


def assert_close(got: NDArray[Any], want: NDArray[Any], dtype: type) -> None:
    """Probabilities of both, to the tolerance of the type."""
    assert got.dtype == dtype
    assert samples.scaled_error(got, want) <= samples.TOLERANCE[np.dtype(dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", LABELS)
def test_every_label_count(labels: int, dtype: type) -> None:
    engine, judge, unary = potts(labels, 700, dtype)
    assert_close(engine.inference(unary, 5).probabilities, judge.run(5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", POINTS)
def test_sizes_next_to_an_edge(points: int, dtype: type) -> None:
    engine, judge, unary = potts(5, points, dtype)
    assert_close(engine.inference(unary, 3).probabilities, judge.run(3), dtype)


@pytest.mark.parametrize("normalization", ["before", "after", "symmetric"])
@pytest.mark.parametrize(("sxy", "srgb", "weight"), [(80.0, 13.0, 10.0), (67.0, 3.0, 4.0), (121.0, 5.0, 4.0)])
def test_photographs(sxy: float, srgb: float, weight: float, normalization: str) -> None:
    image = samples.photo(60, 80)
    features = [oracle.gaussian_features(60, 80, 3.0), oracle.bilateral_features(image, sxy, srgb)]
    unary = samples.energies(21, 4800)
    engine, judge = both(features, [3.0, weight], [normalization] * 2, unary)
    assert_close(engine.inference(unary, 10).probabilities, judge.run(10), np.float32)


@pytest.mark.parametrize("labels", [2, 21])
def test_images_of_several_chunks(labels: int) -> None:
    """Points are cut into chunks of about 16384, whose shared vertices are summed in a fixed order."""
    image, unary = samples.photo(150, 230), samples.energies(labels, 34500)
    features = [oracle.gaussian_features(150, 230, 3.0), oracle.bilateral_features(image, 50.0, 10.0)]
    engine, judge = both(features, [3.0, 5.0], ["symmetric", "after"], unary)
    assert_close(engine.inference(unary, 3).probabilities, judge.run(3), np.float32)


def test_without_normalisation_the_scale_of_the_lattice_shows() -> None:
    unary = samples.energies(4, 900)
    engine, judge = both([samples.features(900, 2)], [0.01], ["none"], unary)
    assert_close(engine.inference(unary, 5).probabilities, judge.run(5), np.float32)


def _compatibilities(labels: int) -> dict[str, Any]:
    rng = np.random.default_rng(labels)
    matrix = rng.normal(0.0, 1.0, (labels, labels))
    return {
        "potts": 2.0,
        "negative potts": -0.5,
        "integer": 2,
        "diagonal": rng.normal(-2.0, 1.0, labels),
        "matrix": matrix,
        "float32 matrix": matrix.astype(np.float32),
        "fortran matrix": np.asfortranarray(matrix),
        "zero": 0.0,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", [1, 2, 5, 8, 17, 21, 33])
@pytest.mark.parametrize("form", _compatibilities(1))
def test_every_compatibility(form: str, labels: int, dtype: type) -> None:
    """A number w adds -w KQ, a vector +v KQ, a matrix +M KQ, as given: not symmetrised."""
    compat = _compatibilities(labels)[form]
    unary = samples.energies(labels, 300, dtype=dtype)
    features = [samples.features(300, 3, dtype=dtype)]
    engine, judge = both(features, [compat], ["symmetric"], unary)
    assert_close(engine.inference(unary, 4).probabilities, judge.run(4), dtype)


def test_signs_agree_between_the_forms() -> None:
    """2, diag(-2) and -2 I are one model."""
    unary = samples.energies(5, 300)
    features = samples.features(300, 3)
    runs = [
        both([features], [compat], ["after"], unary)[0].inference(unary, 5).probabilities
        for compat in (2.0, np.full(5, -2.0), -2.0 * np.eye(5))
    ]
    assert samples.scaled_error(runs[1], runs[0]) <= 1e-6
    assert samples.scaled_error(runs[2], runs[0]) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", [0, 1, 2, 3, 5])
def test_any_number_of_mixed_kernels(kernels: int, dtype: type) -> None:
    forms = list(_compatibilities(6).values())
    unary = samples.energies(6, 400, dtype=dtype)
    features = [samples.features(400, 1 + k, seed=k, dtype=dtype) for k in range(kernels)]
    names = [["symmetric", "after", "before"][k % 3] for k in range(kernels)]
    engine, judge = both(features, [forms[(3 * k) % len(forms)] for k in range(kernels)], names, unary)
    assert_close(engine.inference(unary, 5).probabilities, judge.run(5), dtype)


def test_a_lattice_can_be_given_and_shared() -> None:
    features, unary = samples.features(400, 3), samples.energies(6, 400)
    lattice = PermutohedralLattice(features)
    engine, judge = MeanField(400, 6), oracle.MeanField(unary)
    for compat, name in ((1.0, "symmetric"), (np.linspace(-1, 0, 6), "after")):
        engine.add_kernel(lattice, compat, normalization=name)
        judge.kernels.append((oracle.Lattice(features, np.float32), compat, name))
    assert_close(engine.inference(unary, 5).probabilities, judge.run(5), np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("damping", [0.0, 0.3, 0.9])
def test_damping(damping: float, dtype: type) -> None:
    engine, judge, unary = potts(5, 500, dtype)
    got = engine.inference(unary, 6, damping=damping).probabilities
    assert_close(got, judge.run(6, damping=damping), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_start_from_a_given_q(damping: float, dtype: type) -> None:
    engine, judge, unary = potts(5, 500, dtype)
    q = oracle.softmax(samples.values(5, 500, dtype=np.float64)).astype(dtype)
    got = engine.inference(unary, 3, q=q, damping=damping).probabilities
    assert_close(got, judge.run(3, q=q, damping=damping), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_iterations_give_the_start(dtype: type) -> None:
    engine, judge, unary = potts(5, 500, dtype)
    assert_close(engine.inference(unary, 0).probabilities, judge.start(), dtype)
    q = judge.run(2).astype(dtype)
    assert_close(engine.inference(unary, 0, q=q).probabilities, q, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalization", oracle.NORMALIZATIONS)
def test_energy_and_kl(normalization: str, dtype: type) -> None:
    engine, judge, unary = potts(7, 600, dtype, normalization)
    for q in (judge.start(), judge.run(2), np.eye(7)[np.arange(600) % 7].T):
        got = engine.energy(unary, q.astype(dtype))
        want = judge.energy_terms(q.astype(dtype))
        terms = (got.entropy_term, got.unary_term, got.pairwise_term)
        scale = max(1.0, *(abs(term) for term in want))
        bound = samples.TOLERANCE[np.dtype(dtype)] * scale
        np.testing.assert_allclose(terms, want, rtol=0, atol=bound)
        assert got.kl == pytest.approx(sum(want), abs=3 * bound)
        assert got.free_energy == pytest.approx(want[0] + want[1] + want[2] / 2, abs=3 * bound)


@pytest.mark.parametrize("magnitude", [1e3, 1e5, 1e30])
def test_large_energies_do_not_overflow(magnitude: float) -> None:
    """The softmax shifts by the largest score first."""
    engine, judge, unary = potts(5, 300)
    judge.unary = (unary * np.float32(magnitude)).astype(np.float64)
    got = engine.inference(unary * np.float32(magnitude), 3).probabilities
    np.testing.assert_allclose(got.sum(axis=0), 1.0, atol=1e-5)
    assert (got.argmax(axis=0) == judge.run(3).argmax(axis=0)).mean() >= 0.99


@given(
    st.integers(0, 2**20),
    st.integers(1, 40),
    st.integers(1, 500),
    st.integers(1, 6),
    st.integers(0, 4),
    st.sampled_from(["before", "after", "symmetric"]),
    st.sampled_from(sorted(_compatibilities(1))),
)
def test_any_model_equals_the_oracle(
    seed: int, labels: int, points: int, dimensions: int, iterations: int, normalization: str, form: str
) -> None:
    unary = samples.energies(labels, points, seed, np.float64)
    features = samples.features(points, dimensions, seed, np.float64)
    engine, judge = both([features], [_compatibilities(labels)[form]], [normalization], unary)
    got = engine.inference(unary, iterations).probabilities
    assert_close(got, judge.run(iterations), np.float64)
