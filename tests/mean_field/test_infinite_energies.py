"""Energies of +inf and logits of -inf: a label that a pixel cannot have, with the bits of the largest float32 in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import samples

import deeplab_crf.pydensecrf.densecrf as dcrf
from deeplab_crf import Gaussian, ImageCRF, MeanField, dense_crf
from deeplab_crf.core.energies import LARGEST_ENERGY, capped_scores
from deeplab_crf.core.mean_field import pack_unary
from deeplab_crf.pydensecrf import utils

HEIGHT, WIDTH = 19, 23
IMAGE = samples.photo(HEIGHT, WIDTH)


def saturated(labels: int, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
    """Energies (labels, HEIGHT, WIDTH), a third of them infinite, a finite one in every pixel."""
    energies = samples.energies(labels, HEIGHT * WIDTH, dtype=dtype).reshape(labels, HEIGHT, WIDTH)
    infinite = np.random.default_rng(labels).random(energies.shape) < 1 / 3
    infinite[0] &= ~infinite.all(axis=0)
    return np.where(infinite, dtype(np.inf), energies)


def capped(energies: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.minimum(energies, np.finfo(np.float32).max, dtype=np.result_type(energies.dtype, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", [2, 3, 5, 21, 40])
@pytest.mark.parametrize("source", ["unary", "logits"])
def test_dense_crf(source: str, labels: int, dtype: Any) -> None:
    energies = saturated(labels)
    sign = -1 if source == "logits" else 1
    got = dense_crf(IMAGE, **{source: sign * energies}, dtype=dtype)
    np.testing.assert_array_equal(got, dense_crf(IMAGE, **{source: sign * capped(energies)}, dtype=dtype))
    np.testing.assert_array_equal(got[np.isinf(energies)], 0)
    np.testing.assert_allclose(got.sum(axis=0), 1, atol=1e-5)
    crf = ImageCRF(IMAGE, labels, dtype=dtype)
    np.testing.assert_array_equal(crf.infer(**{source: sign * energies}), got)


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pack_unary(dtype: Any, layout: str, given: Any) -> None:
    energies = saturated(5, np.float32).reshape(5, -1).astype(np.float16).astype(given)
    laid_out = np.repeat(energies, 2, axis=1)[:, ::2] if layout == "strided" else np.array(energies, order=layout)  # type: ignore[call-overload]
    want = capped(energies.astype(np.float64)).astype(dtype)
    np.testing.assert_array_equal(pack_unary(laid_out, dtype=dtype), want)
    np.testing.assert_array_equal(pack_unary(-laid_out, dtype=dtype, negate=True), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_mean_field_and_its_energy(order: str, dtype: Any) -> None:
    energies = np.array(saturated(4, dtype).reshape(4, -1), order=order)  # type: ignore[call-overload]
    crf = MeanField(HEIGHT * WIDTH, 4, dtype=dtype)
    crf.add_kernel(samples.features(HEIGHT * WIDTH, 2).T, 3)
    kept = energies.copy()
    result, want = crf.inference(energies, 5), crf.inference(capped(energies), 5)
    np.testing.assert_array_equal(result.probabilities, want.probabilities)
    np.testing.assert_array_equal(energies, kept)
    assert crf.energy(energies, result.probabilities) == crf.energy(capped(energies), want.probabilities)
    assert np.isfinite(crf.energy(energies, result.probabilities).kl)
    damped = crf.inference(energies, 5, damping=0.5, tolerance=1e-3).probabilities
    np.testing.assert_array_equal(damped, crf.inference(capped(energies), 5, damping=0.5, tolerance=1e-3).probabilities)


def test_a_larger_finite_energy_does_not_win_over_infinity() -> None:
    energies = np.array([[1e300, np.inf], [np.inf, 1.0]])
    crf = MeanField(2, 2, dtype=np.float64)
    np.testing.assert_array_equal(crf.inference(energies, 0).probabilities, [[0.5, 0], [0.5, 1]])
    finite = np.array([[1e300, 0], [2e300, 1.0]])  # without infinity nothing is capped
    np.testing.assert_array_equal(crf.inference(finite, 0).probabilities[:, 0], [1, 0])


SETTERS: dict[str, Callable[[dcrf.DenseCRF2D, Any], None]] = {
    "setUnaryEnergy": lambda crf, energies: crf.setUnaryEnergy(energies),
    "ConstUnary": lambda crf, energies: crf.setUnary(dcrf.ConstUnary(energies)),
    "rows and columns": lambda crf, energies: crf.setUnaryEnergy(energies.reshape(-1, HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("setter", SETTERS)
def test_drop_in(setter: str) -> None:
    probabilities = np.exp(-saturated(3, np.float32).reshape(3, -1))
    with np.errstate(divide="ignore"):
        energies = -np.log(probabilities)
    results = []
    for given in (energies, capped(energies)):
        crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, 3)
        SETTERS[setter](crf, given)
        crf.addPairwiseGaussian(3, 3)
        crf.addPairwiseBilateral(80, 13, IMAGE, 10)
        q, first, second = crf.startInference()
        divergences = [crf.klDivergence(q)]
        for _ in range(5):
            crf.stepInference(q, first, second)
            divergences.append(crf.klDivergence(q))
        assert np.isfinite(divergences).all()
        results.append((crf.inference(5), q, divergences))
    for got, want in zip(*results, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_smallest_case() -> None:
    crf = dcrf.DenseCRF2D(2, 1, 2)
    crf.setUnaryEnergy(np.array([[0, np.inf], [np.inf, 0]], "f4"))
    np.testing.assert_array_equal(crf.inference(3), np.eye(2))


def test_products_that_are_too_large() -> None:
    crf = dcrf.DenseCRF(2, 2)
    crf.setUnaryEnergy(np.array([[1e30, 0], [0, 1]]), np.array([[1e30, 1], [1, 1]]))
    np.testing.assert_allclose(crf.inference(0)[:, 0], [0, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_of_zero_and_one(dtype: Any) -> None:
    hard = np.eye(3)[np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3].transpose(2, 0, 1)
    got = dense_crf(IMAGE, probabilities=hard.astype(dtype), kernels=[Gaussian(weight=0)], dtype=dtype)
    np.testing.assert_allclose(got, hard, atol=1e-4)
    unary = utils.unary_from_softmax(hard.astype(dtype), clip=None)
    crf = dcrf.DenseCRF(HEIGHT * WIDTH, 3)
    crf.setUnaryEnergy(unary)
    np.testing.assert_array_equal(crf.inference(0), hard.reshape(3, -1))


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_capped_scores(dtype: Any, negated: bool) -> None:
    sign = -1 if negated else 1
    scores = sign * np.array([[1, np.inf, 3, 2], [np.inf, 2, np.inf, 1]], dtype)
    got, first = capped_scores(scores, negated=negated)
    assert first is None
    np.testing.assert_array_equal(got, sign * np.clip(sign * scores.astype(np.float64), None, LARGEST_ENERGY))
    for bad in (np.nan, -sign * np.inf):
        worse = scores.copy()
        worse[1, 3] = bad
        assert capped_scores(worse, negated=negated)[1] == (1, 3)
    worse = scores.copy()
    worse[:, 2] = sign * np.inf
    assert capped_scores(worse, negated=negated)[1] == (0, 2)
    finite = np.ones((2, 3), dtype)
    assert capped_scores(finite, negated=negated)[0] is finite
