"""The contract of `pydensecrf.densecrf`: names, defaults, signs, axis orders, and what the results let clients do."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import oracle
import pytest
import samples
from numpy.typing import NDArray

import deeplab_crf.pydensecrf.densecrf as dcrf

HEIGHT, WIDTH, LABELS = 16, 23, 4
IMAGE = samples.photo(HEIGHT, WIDTH)
UNARY = samples.energies(LABELS, HEIGHT * WIDTH)
MATRIX = np.random.default_rng(5).normal(-0.5, 1.0, (LABELS, LABELS)).astype(np.float32)
MODES = {
    dcrf.NO_NORMALIZATION: "none",
    dcrf.NORMALIZE_BEFORE: "before",
    dcrf.NORMALIZE_AFTER: "after",
    dcrf.NORMALIZE_SYMMETRIC: "symmetric",
}


def _crf(unary: NDArray[Any] = UNARY) -> dcrf.DenseCRF2D:
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.setUnaryEnergy(unary)
    return crf


def _standard() -> dcrf.DenseCRF2D:
    crf = _crf()
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(30, 13, IMAGE, 5)
    return crf


def _twin(*kernels: tuple[NDArray[Any], Any, str], unary: NDArray[Any] = UNARY) -> oracle.MeanField:
    """The oracle's CRF over the vertices that float32 features touch."""
    return oracle.MeanField(unary, [(oracle.Lattice(f, np.float32), compat, mode) for f, compat, mode in kernels])


# -- names, defaults, constants ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (dcrf.DenseCRF.addPairwiseEnergy, "features compat kernel=1 normalization=3"),
        (dcrf.DenseCRF2D.addPairwiseGaussian, "sxy compat kernel=1 normalization=3"),
        (dcrf.DenseCRF2D.addPairwiseBilateral, "sxy srgb rgbim compat kernel=1 normalization=3"),
        (dcrf.DenseCRF.setUnaryEnergy, "u f=None"),
    ],
)
def test_argument_names_order_and_defaults(method: Any, expected: str) -> None:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    spelled = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert " ".join(spelled) == expected


def test_constants() -> None:
    assert [dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL] == [0, 1, 2]
    modes = [dcrf.NO_NORMALIZATION, dcrf.NORMALIZE_BEFORE, dcrf.NORMALIZE_AFTER, dcrf.NORMALIZE_SYMMETRIC]
    assert modes == [0, 1, 2, 3]
    assert dcrf.KernelType.FULL_KERNEL is dcrf.FULL_KERNEL
    assert dcrf.NormalizationType.NORMALIZE_AFTER is dcrf.NORMALIZE_AFTER
    assert isinstance(dcrf.NORMALIZE_AFTER, int)


def test_constructors_swallow_extra_arguments_and_take_keywords() -> None:
    for crf in (
        dcrf.DenseCRF(6, 2, "more", more=1),
        dcrf.DenseCRF(nvar=6, nlabels=2),
        dcrf.DenseCRF2D(3, 2, 2, "more", more=1),
        dcrf.DenseCRF2D(w=3, h=2, nlabels=2),
        dcrf.DenseCRF2D(6 / 2, np.int64(2), np.uint8(2)),  # type: ignore[arg-type]
    ):
        assert crf.inference(0).shape == (2, 6)


def test_subclass() -> None:
    class Mine(dcrf.DenseCRF2D):
        def __init__(self, image: NDArray[np.uint8], labels: int) -> None:
            super().__init__(image.shape[1], image.shape[0], labels)
            self.addPairwiseBilateral(30, 13, image, 5)

    mine, plain = Mine(IMAGE, LABELS), _crf()
    mine.setUnaryEnergy(UNARY)
    plain.addPairwiseBilateral(30, 13, IMAGE, 5)
    np.testing.assert_array_equal(mine.inference(3), plain.inference(3))


# -- the model --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [dcrf.NORMALIZE_BEFORE, dcrf.NORMALIZE_AFTER, dcrf.NORMALIZE_SYMMETRIC])
@pytest.mark.parametrize(
    ("compat", "added"),
    [
        (2.0, lambda q: -2.0 * q),
        (np.array([1.0, -2.0, 0.5]), lambda q: np.array([1.0, -2.0, 0.5]) * q),
        (
            np.array([[0.0, 1.0, 4.0], [3.0, -1.0, 0.0], [0.0, 2.0, 5.0]]),
            lambda q: np.array([[0.0, 2.0, 2.0], [2.0, -1.0, 1.0], [2.0, 1.0, 5.0]]) @ q,
        ),
    ],
    ids=["potts", "diagonal", "matrix"],
)
def test_signs_by_hand_on_one_point(mode: int, compat: Any, added: Any) -> None:
    # Over a single point every normalised filter is the identity, so one update can be written down.
    unary = np.array([[0.2], [1.0], [0.6]])
    crf = dcrf.DenseCRF(1, 3)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(np.array([[0.3], [-0.7]]), compat, normalization=mode)
    start = oracle.softmax(-unary)
    want = oracle.softmax(-unary - added(start[:, 0])[:, None])
    np.testing.assert_allclose(crf.inference(1), want, atol=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: dcrf.NormalizationType(mode).name)
@pytest.mark.parametrize(
    ("compat", "engine"),
    [
        (2.5, 2.5),
        (np.array([-1.0, -2.0, 0.5, -3.0]), np.array([-1.0, -2.0, 0.5, -3.0])),
        (MATRIX, (MATRIX + MATRIX.T) / 2),
    ],
    ids=["potts", "diagonal", "matrix"],
)
def test_kernels_against_the_oracle(mode: int, compat: Any, engine: Any) -> None:
    gaussian = oracle.gaussian_features(HEIGHT, WIDTH, (3.0, 2.0))
    bilateral = oracle.bilateral_features(IMAGE, (30.0, 20.0), (13.0, 11.0, 9.0))
    crf = _crf()
    crf.addPairwiseGaussian((3, 2), compat, dcrf.DIAG_KERNEL, mode)
    crf.addPairwiseBilateral((30, 20), (13, 11, 9), IMAGE, compat, dcrf.DIAG_KERNEL, mode)
    twin = _twin((gaussian, engine, MODES[mode]), (bilateral, engine, MODES[mode]))
    np.testing.assert_allclose(crf.inference(1), twin.run(1), atol=1e-4 if mode == dcrf.NO_NORMALIZATION else 1e-5)


def test_default_normalization_and_kernel() -> None:
    results = []
    for extra in ({}, {"normalization": 3}, {"kernel": dcrf.CONST_KERNEL}, {"kernel": 2}, {"normalization": 2}):
        crf = _crf()
        crf.addPairwiseGaussian(3, 3, **extra)
        results.append(crf.inference(2))
    for same in results[1:4]:
        np.testing.assert_array_equal(results[0], same)
    assert np.abs(results[0] - results[4]).max() > 1e-3


def test_number_vector_and_matrix_of_one_model() -> None:
    results = []
    for compat in (2, np.float32(2), np.array(2.0), np.full(LABELS, -2.0), -2 * np.eye(LABELS)):
        crf = _crf()
        crf.addPairwiseGaussian(3, compat)
        results.append(crf.inference(3))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)


def test_energy_features_are_those_of_the_two_dimensional_methods() -> None:
    crf, two_d = dcrf.DenseCRF(HEIGHT * WIDTH, LABELS), _standard()
    crf.setUnaryEnergy(UNARY)
    crf.addPairwiseEnergy(oracle.gaussian_features(HEIGHT, WIDTH, 3.0).T, 3)
    crf.addPairwiseEnergy(oracle.bilateral_features(IMAGE, 30.0, 13.0).T, compat=5)
    # Only the order of sums differs: images are walked in tiles.
    np.testing.assert_allclose(crf.inference(3), two_d.inference(3), atol=1e-6)


def test_compat_is_copied() -> None:
    compat = MATRIX.copy()
    crf = _crf()
    crf.addPairwiseGaussian(3, compat)
    before = crf.inference(2)
    compat[:] = 0
    np.testing.assert_array_equal(crf.inference(2), before)


# -- unaries ----------------------------------------------------------------------------------------------------------
def test_unary_is_an_energy_and_copied() -> None:
    unary = UNARY.copy()
    crf = _crf(unary)
    unary[:] = 0
    np.testing.assert_allclose(crf.inference(0), oracle.softmax(-UNARY.astype(np.float64)), atol=1e-6)


def test_new_unary_on_the_same_lattices() -> None:
    crf, fresh = _standard(), _crf(UNARY[::-1])
    fresh.addPairwiseGaussian(3, 3)
    fresh.addPairwiseBilateral(30, 13, IMAGE, 5)
    crf.inference(2)
    crf.setUnaryEnergy(UNARY[::-1])
    np.testing.assert_array_equal(crf.inference(3), fresh.inference(3))


def test_unary_objects() -> None:
    rng = np.random.default_rng(1)
    weights, features = rng.normal(size=(LABELS, 3)), rng.normal(size=(3, HEIGHT * WIDTH))
    energies = weights @ features
    logistic = dcrf.LogisticUnary(weights, features)
    constant = dcrf.ConstUnary(energies)
    weights[:], features[:] = 0, 0  # both copy
    for unary in (logistic, constant, logistic, constant):  # any number of times
        crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        crf.setUnary(unary)
        crf.setUnary(unary)
        np.testing.assert_allclose(crf.inference(0), oracle.softmax(-energies), atol=1e-6)


def test_set_unary_energy_with_features_is_logistic() -> None:
    rng = np.random.default_rng(2)
    weights, features = rng.normal(size=(LABELS, 3)), rng.normal(size=(3, HEIGHT * WIDTH))
    crf = _crf(np.zeros_like(UNARY))
    crf.setUnaryEnergy(weights, features)
    np.testing.assert_allclose(crf.inference(0), oracle.softmax(-weights @ features), atol=1e-6)


def test_without_unary() -> None:
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.addPairwiseGaussian(3, MATRIX)
    zeros = np.zeros_like(UNARY)
    twin = _twin((oracle.gaussian_features(HEIGHT, WIDTH, 3.0), (MATRIX + MATRIX.T) / 2, "symmetric"), unary=zeros)
    np.testing.assert_allclose(crf.inference(0), 1 / LABELS)
    np.testing.assert_allclose(crf.inference(2), twin.run(2), atol=1e-5)
    marginals, first, second = crf.startInference()
    np.testing.assert_array_equal(marginals, zeros)  # not a distribution, but what pydensecrf starts from
    assert crf.klDivergence(marginals) == 0.0
    crf.stepInference(marginals, first, second)
    np.testing.assert_allclose(marginals, 1 / LABELS)
    crf.stepInference(marginals, first, second)
    np.testing.assert_allclose(marginals, twin.run(1), atol=1e-5)


# -- results ----------------------------------------------------------------------------------------------------------
def test_what_clients_do_with_the_result() -> None:
    result = _standard().inference(5)
    copy, view = np.array(result), np.asarray(result)
    assert view.dtype == np.float32
    assert view.shape == (LABELS, HEIGHT * WIDTH)
    assert view.flags.f_contiguous
    assert not view.flags.c_contiguous
    assert np.shares_memory(view, result)
    assert not np.shares_memory(copy, result)
    exported = memoryview(result)
    assert (exported.shape, exported.strides, exported.format) == (view.shape, view.strides, "f")
    np.testing.assert_allclose(view.sum(axis=0), 1, atol=1e-6)
    labels = np.argmax(result, axis=0)
    assert type(labels) is np.ndarray
    np.testing.assert_array_equal(labels.reshape(HEIGHT, WIDTH), np.argmax(copy.reshape(LABELS, HEIGHT, WIDTH), axis=0))
    np.testing.assert_array_equal(np.transpose(result), copy.T)
    np.testing.assert_array_equal(np.float32(2) * result, 2 * copy)
    # Pixel (row, column) is element row * width + column.
    np.testing.assert_array_equal(np.array(result).reshape(LABELS, HEIGHT, WIDTH)[:, 3, 5], copy[:, 3 * WIDTH + 5])


def test_result_is_not_the_crf_s_own_memory() -> None:
    crf = _standard()
    first = crf.inference(2)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(crf.inference(2), kept)


def test_steps_are_in_place_and_equal_inference() -> None:
    crf = _standard()
    marginals, first, second = crf.startInference()
    view = np.asarray(marginals)
    np.testing.assert_array_equal(marginals, crf.inference(0))
    for step in (1, 2, 3):
        before = np.array(marginals)
        assert crf.stepInference(marginals, first, second) is None
        assert np.abs(np.array(marginals) - before).max() > 1e-4
        np.testing.assert_allclose(np.array(marginals), crf.inference(step), atol=1e-6)
        np.testing.assert_array_equal(view, np.array(marginals))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_step_of_a_start_of_your_own(dtype: type, order: Any) -> None:
    start = oracle.softmax(-2 * UNARY.astype(np.float64)).astype(dtype)
    marginals = np.array(start, order=order)
    crf = _standard()
    crf.stepInference(marginals, marginals, marginals)
    gaussian, bilateral = oracle.gaussian_features(HEIGHT, WIDTH, 3.0), oracle.bilateral_features(IMAGE, 30.0, 13.0)
    want = _twin((gaussian, 3.0, "symmetric"), (bilateral, 5.0, "symmetric")).step(start.astype(np.float64))
    np.testing.assert_allclose(marginals, want, atol=1e-3 if dtype is np.float16 else 1e-5)


def test_kl_divergence() -> None:
    crf = _standard()
    gaussian, bilateral = oracle.gaussian_features(HEIGHT, WIDTH, 3.0), oracle.bilateral_features(IMAGE, 30.0, 13.0)
    twin = _twin((gaussian, 3.0, "symmetric"), (bilateral, 5.0, "symmetric"))
    for iterations in (0, 3):
        marginals = crf.inference(iterations)
        value = crf.klDivergence(marginals)
        assert type(value) is float
        assert value == pytest.approx(sum(twin.energy_terms(marginals)), rel=1e-5)
    one_hot = np.zeros_like(UNARY)
    one_hot[0] = 1  # 0 log 0 counts 0
    assert crf.klDivergence(one_hot) == pytest.approx(sum(twin.energy_terms(one_hot)), rel=1e-5)


@pytest.mark.parametrize("niter", [2, np.int64(2), np.uint8(2), 2.0, np.float32(2)])
def test_whole_numbers_of_iterations(niter: Any) -> None:
    crf = _standard()
    np.testing.assert_array_equal(crf.inference(niter), crf.inference(2))


@pytest.mark.parametrize("points", [12, 13, 14, 15])
def test_zero_features_fill_up_the_last_block_of_four(points: int) -> None:
    # pydensecrf embeds four points at a time; the zeros behind the last one get vertices, but no values.
    rng = np.random.default_rng(points)
    unary, features = rng.normal(size=(2, points)), rng.normal(size=(points, 5)).astype(np.float32)
    lattice = oracle.Lattice(np.concatenate([features, np.zeros((-points % 4, 5), np.float32)]), np.float32)
    lattice.weights, lattice.index = lattice.weights[:points], lattice.index[:points]
    crf = dcrf.DenseCRF(points, 2)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(features.T, 3)
    np.testing.assert_allclose(
        crf.inference(3), oracle.MeanField(unary, [(lattice, 3.0, "symmetric")]).run(3), atol=1e-5
    )
