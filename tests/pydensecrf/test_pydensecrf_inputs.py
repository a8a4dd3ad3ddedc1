"""What the drop-in accepts where pydensecrf does not, and what it refuses: by name, with what was expected and came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import samples
from numpy.typing import NDArray
from PIL import Image

import deeplab_crf.pydensecrf.densecrf as dcrf

HEIGHT, WIDTH, LABELS = 9, 12, 3
POINTS = HEIGHT * WIDTH
IMAGE = samples.photo(HEIGHT, WIDTH)
UNARY = samples.energies(LABELS, POINTS)


def _crf() -> dcrf.DenseCRF2D:
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.setUnaryEnergy(UNARY)
    return crf


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def _with(array: Any, value: float) -> NDArray[Any]:
    """``array`` as floats with one bad value in it."""
    floats = np.array(array, np.float64)
    floats[(1,) * floats.ndim] = value
    return floats


# -- accepted ---------------------------------------------------------------------------------------------------------
LAYOUTS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "big-endian": lambda a: a.astype(">f4"),
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "read-only": _read_only,
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unary_of_any_type_and_layout(layout: str) -> None:
    unary = UNARY.astype(np.float16).astype(np.float32)  # exact in every type
    want = _crf()
    want.setUnaryEnergy(unary)
    for given in (LAYOUTS[layout](unary), np.array(LAYOUTS[layout](unary)).reshape(LABELS, HEIGHT, WIDTH)):
        crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        crf.setUnaryEnergy(given)
        np.testing.assert_array_equal(crf.inference(0), want.inference(0))
        crf.setUnary(dcrf.ConstUnary(given))
        np.testing.assert_array_equal(crf.inference(0), want.inference(0))


def test_unary_of_integers_and_of_a_transposed_image() -> None:
    integers = (10 * UNARY).astype(np.int32)
    crf, want = _crf(), _crf()
    crf.setUnaryEnergy(np.moveaxis(np.moveaxis(integers.reshape(LABELS, HEIGHT, WIDTH), 0, -1).copy(), -1, 0))
    want.setUnaryEnergy(integers.astype(np.float32))
    np.testing.assert_array_equal(crf.inference(0), want.inference(0))


def test_unary_and_features_of_a_volume() -> None:
    shape = (3, 4, 5)
    rng = np.random.default_rng(0)
    unary, features = rng.normal(size=(2, *shape)), rng.normal(size=(3, *shape))
    crf, want = dcrf.DenseCRF(60, 2), dcrf.DenseCRF(60, 2)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(features, 2)
    want.setUnaryEnergy(unary.reshape(2, -1).astype(np.float32))
    want.addPairwiseEnergy(features.reshape(3, -1).astype(np.float32), 2)
    np.testing.assert_array_equal(crf.inference(2), want.inference(2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_of_any_type_and_layout(layout: str) -> None:
    features = samples.features(POINTS, 4).T.astype(np.float16).astype(np.float32)
    crf, want = _crf(), _crf()
    crf.addPairwiseEnergy(LAYOUTS[layout](features), [-1, -2, -3])
    want.addPairwiseEnergy(np.ascontiguousarray(features), np.array([-1, -2, -3], np.float32))
    np.testing.assert_array_equal(crf.inference(2), want.inference(2))


@pytest.mark.parametrize(
    "given",
    [
        IMAGE.astype(np.int64),
        IMAGE.astype(np.float64),
        IMAGE.astype(np.float16),
        IMAGE.astype(">u2"),
        np.asfortranarray(IMAGE),
        IMAGE[::-1][::-1],
        _read_only(IMAGE),
        np.dstack([IMAGE, IMAGE])[:, :, :3],
        IMAGE.tolist(),
        np.asarray(Image.fromarray(IMAGE)),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, list) else str(given.dtype),
)
def test_image_of_any_type_and_layout(given: Any) -> None:
    crf, want = _crf(), _crf()
    crf.addPairwiseBilateral(30, 13, given, 5)
    want.addPairwiseBilateral(30, 13, IMAGE, 5)
    np.testing.assert_array_equal(crf.inference(3), want.inference(3))


@pytest.mark.parametrize(
    ("image", "srgb"),
    [
        (IMAGE[..., 0], 13),
        (IMAGE[..., :1], [13]),
        (IMAGE[..., 0] / 255.0, 0.05),
        (samples.photo(HEIGHT, WIDTH, 6), 13),
        (samples.photo(HEIGHT, WIDTH, 2), (13, 7)),
    ],
    ids=["gray", "one channel", "gray float", "six channels", "two channels"],
)
def test_gray_and_multispectral_images(image: NDArray[Any], srgb: Any) -> None:
    crf = _crf()
    crf.addPairwiseBilateral((30, 20), srgb, image, 5)
    features = oracle.bilateral_features(image, (30, 20), srgb)
    twin = oracle.MeanField(UNARY, [(oracle.Lattice(features, np.float32), 5.0, "symmetric")])
    np.testing.assert_allclose(crf.inference(2), twin.run(2), atol=1e-5)


@pytest.mark.parametrize("sxy", [[3, 2], np.array([3, 2]), np.array([3.0, 2.0], np.float32), (3.0, np.float64(2))])
def test_widths_in_any_sequence(sxy: Any) -> None:
    crf, want = _crf(), _crf()
    crf.addPairwiseGaussian(sxy, 3)
    want.addPairwiseGaussian((3, 2), 3)
    np.testing.assert_array_equal(crf.inference(2), want.inference(2))


def test_further_widths_are_ignored() -> None:
    """pydensecrf (densecrf.pyx) reads sxy[0], sxy[1] and srgb[0], srgb[1], srgb[2]."""
    crf, want = _crf(), _crf()
    crf.addPairwiseGaussian(sxy=(3, 2, 0), compat=3)
    crf.addPairwiseBilateral((30, 20, 10), (13, 12, 11, 0), IMAGE, 5)
    want.addPairwiseGaussian(sxy=(3, 2), compat=3)
    want.addPairwiseBilateral((30, 20), (13, 12, 11), IMAGE, 5)
    np.testing.assert_array_equal(crf.inference(2), want.inference(2))


# -- refused ----------------------------------------------------------------------------------------------------------
REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("no points", lambda: dcrf.DenseCRF(0, 2), "nvar must be 1 or more; got 0"),
    ("no labels", lambda: dcrf.DenseCRF(5, 0), "nlabels must be 1 or more; got 0"),
    ("negative width", lambda: dcrf.DenseCRF2D(-4, 3, 2), "w must be 1 or more; got -4"),
    ("no height", lambda: dcrf.DenseCRF2D(4, 0, 2), "h must be 1 or more; got 0"),
    ("half a pixel", lambda: dcrf.DenseCRF2D(4.5, 3, 2), "w must be an integer; got 4.5"),  # type: ignore[arg-type]
    ("unary rows", lambda: _crf().setUnaryEnergy(UNARY[:2]), r"u must have 3 rows, .* got shape \(2, 108\)"),
    ("unary columns", lambda: _crf().setUnaryEnergy(UNARY[:, 1:]), r"u .*\(rows, 108\) .*got \(3, 107\)"),
    ("unary transposed", lambda: _crf().setUnaryEnergy(UNARY.T), r"got \(108, 3\); move its last axis"),
    (
        "unary width first",
        lambda: _crf().setUnaryEnergy(UNARY.reshape(LABELS, WIDTH, HEIGHT)),
        r"\(rows, 9, 12\).* got \(3, 12, 9\); DenseCRF2D takes the width first",
    ),
    (
        "unary channels last",
        lambda: _crf().setUnaryEnergy(UNARY.reshape(LABELS, HEIGHT, WIDTH).transpose(1, 2, 0)),
        r"got \(9, 12, 3\); move its last axis to the front",
    ),
    ("unary flat", lambda: _crf().setUnaryEnergy(UNARY.ravel()), r"u must have shape .* got \(324,\)"),
    ("unary NaN", lambda: _crf().setUnaryEnergy(_with(UNARY, np.nan)), r"u\b.*nan"),
    ("unary -inf", lambda: _crf().setUnaryEnergy(_with(UNARY, -np.inf)), r"u must be finite; got -inf .*\bpoint 1\b"),
    (
        "no label left",
        lambda: _crf().setUnaryEnergy(np.full_like(UNARY, np.inf)),
        r"u must be finite for at least one label of each pixel; got inf for all labels, point 0\. Give such a pixel",
    ),
    ("constant -inf", lambda: dcrf.ConstUnary(_with(UNARY, -np.inf)), r"^u must be finite; got -inf"),
    ("logistic -inf", lambda: dcrf.LogisticUnary([[-1e30]], [[1e30]]), r"^L @ f must be finite; got -inf"),
    ("unary ragged", lambda: _crf().setUnaryEnergy([[1, 2], [3]]), "u must be an array of numbers"),
    ("constant NaN", lambda: dcrf.ConstUnary(_with(UNARY, np.nan)), r"u\b.*nan"),
    ("constant flat", lambda: dcrf.ConstUnary(UNARY.ravel()), r"u must have two or more axes .*\(324,\)"),
    ("constant shape", lambda: _crf().setUnary(dcrf.ConstUnary(UNARY[:, 1:])), r"u must have shape .*\(3, 107\)"),
    ("constant rows", lambda: _crf().setUnary(dcrf.ConstUnary(UNARY[1:])), r"u must have 3 rows.*\(2, 108\)"),
    ("logistic", lambda: dcrf.LogisticUnary(np.ones((3, 4)), np.ones((5, 9))), r"L must .*\(3, 4\) and \(5, 9\)"),
    ("logistic L", lambda: dcrf.LogisticUnary(_with(np.ones((3, 4)), np.nan), np.ones((4, 9))), r"^L must be finite"),
    ("logistic f", lambda: dcrf.LogisticUnary(np.ones((3, 4)), _with(np.ones((4, 9)), np.inf)), r"^f must be finite"),
    (
        "logistic shape",
        lambda: _crf().setUnaryEnergy(np.ones((3, 4)), np.ones((4, 9))),
        r"u must have shape .*\(3, 9\)",
    ),
    ("features points", lambda: _crf().addPairwiseEnergy(np.ones((2, 107)), 3), r"features must .*\(rows, 108\).*107"),
    ("features none", lambda: _crf().addPairwiseEnergy(np.ones((0, 108)), 3), r"features must .*got \(0, 108\)"),
    (
        "features NaN",
        lambda: _crf().addPairwiseEnergy(_with(np.ones((2, 108)), np.nan), 3),
        r"features .*nan .*\(1, 1\)",
    ),
    ("features inf", lambda: _crf().addPairwiseEnergy(_with(np.ones((2, 108)), -np.inf), 3), "features must be finite"),
    ("features 1e39", lambda: _crf().addPairwiseEnergy(_with(np.ones((2, 108)), 1e39), 3), "features must be finite"),
    ("compat length", lambda: _crf().addPairwiseGaussian(3, [1, 2]), r"compat .*\(3,\) or \(3, 3\).* got shape \(2,\)"),
    ("compat matrix", lambda: _crf().addPairwiseGaussian(3, np.ones((3, 2))), r"compat .* got shape \(3, 2\)"),
    ("compat axes", lambda: _crf().addPairwiseGaussian(3, np.ones((3, 3, 3))), r"compat .* got shape \(3, 3, 3\)"),
    ("compat NaN", lambda: _crf().addPairwiseGaussian(3, np.nan), "compat must be finite"),
    ("compat inf", lambda: _crf().addPairwiseGaussian(3, _with(np.eye(3), np.inf)), r"compat .*inf at index \(1, 1\)"),
    ("sxy zero", lambda: _crf().addPairwiseGaussian(0, 3), "sxy must be positive and finite .*got 0"),
    ("sxy negative", lambda: _crf().addPairwiseGaussian((3, -1), 3), r"sxy must be positive .*got \(3, -1\)"),
    ("sxy NaN", lambda: _crf().addPairwiseGaussian(np.nan, 3), "sxy must be positive"),
    ("sxy inf", lambda: _crf().addPairwiseGaussian(np.inf, 3), "sxy must be positive"),
    ("sxy tiny", lambda: _crf().addPairwiseGaussian(1e-60, 3), "sxy must be positive"),
    (
        "sxy one",
        lambda: _crf().addPairwiseGaussian((3,), 3),
        r"sxy must be one number or 2 or more \(sx, sy\); got 1",
    ),
    ("srgb zero", lambda: _crf().addPairwiseBilateral(3, 0, IMAGE, 3), "srgb must be positive"),
    ("srgb two", lambda: _crf().addPairwiseBilateral(3, (1, 2), IMAGE, 3), r"srgb .* 3 .*\(9, 12, 3\)\); got 2"),
    ("srgb of gray", lambda: _crf().addPairwiseBilateral(3, (1, 2, 3), IMAGE[..., 0], 3), r"srgb .* 1 .*got 3"),
    ("image swapped", lambda: _crf().addPairwiseBilateral(3, 3, IMAGE.transpose(1, 0, 2), 3), "width first"),
    ("image planar", lambda: _crf().addPairwiseBilateral(3, 3, IMAGE.transpose(2, 0, 1), 3), r"rgbim .*transpose\(1"),
    (
        "image small",
        lambda: _crf().addPairwiseBilateral(3, 3, IMAGE[1:], 3),
        r"rgbim .*\(9, 12, 3\).* got \(8, 12, 3\)",
    ),
    ("image flat", lambda: _crf().addPairwiseBilateral(3, 3, IMAGE.reshape(-1, 3), 3), r"rgbim .* got \(108, 3\)"),
    ("image empty", lambda: _crf().addPairwiseBilateral(3, 3, IMAGE[..., :0], 3), r"rgbim .* got \(9, 12, 0\)"),
    (
        "image NaN",
        lambda: _crf().addPairwiseBilateral(3, 3, _with(IMAGE, np.nan), 3),
        r"rgbim .*nan at index \(1, 1, 1\)",
    ),
    ("image inf", lambda: _crf().addPairwiseBilateral(3, 3, _with(IMAGE, np.inf), 3), "rgbim must be finite"),
    ("image -inf", lambda: _crf().addPairwiseBilateral(3, 3, _with(IMAGE, -np.inf), 3), "rgbim must be finite"),
    ("kernel", lambda: _crf().addPairwiseGaussian(3, 3, kernel=3), r"kernel must be one of CONST_KERNEL \(0\).* got 3"),
    ("normalization", lambda: _crf().addPairwiseGaussian(3, 3, normalization=4), "normalization must be .* got 4"),
    ("iterations", lambda: _crf().inference(-1), "niter must be 0 or more; got -1"),
    ("half an iteration", lambda: _crf().inference(2.5), "niter must be an integer; got 2.5"),  # type: ignore[arg-type]
    ("step shape", lambda: _crf().stepInference(np.ones((3, 5), np.float32)), r"Q .*\(3, 108\); got \(3, 5\)"),
    ("step NaN", lambda: _crf().stepInference(_with(UNARY, np.nan)), "Q must be finite"),
    ("kl shape", lambda: _crf().klDivergence(np.ones((3, 5))), r"Q must have shape \(3, 108\); got \(3, 5\)"),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_values(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dcrf.DenseCRF("4", 2), "nvar must be an integer; got str"),  # type: ignore[arg-type]
        (lambda: _crf().setUnary(UNARY), "u must be a Unary; got ndarray.*setUnaryEnergy"),  # type: ignore[arg-type]
        (lambda: _crf().setUnary(None), "u must be a Unary; got NoneType"),  # type: ignore[arg-type]
        (lambda: _crf().setUnary(dcrf.Unary()), "u must be a ConstUnary or a LogisticUnary"),
        (lambda: _crf().setUnaryEnergy(None), "u must be an array of real numbers; got NoneType"),  # type: ignore[arg-type]
        (lambda: _crf().setUnaryEnergy(UNARY * 1j), "u must be an array of real numbers; got ndarray of dtype complex"),
        (lambda: _crf().addPairwiseGaussian("3", 3), "sxy must be a number or a sequence of 2"),
        (lambda: _crf().addPairwiseGaussian(["a", "b"], 3), "sxy must hold real numbers; got 'a'"),
        (lambda: _crf().addPairwiseGaussian(3, "3"), "compat must be an array of real numbers"),
        (lambda: _crf().addPairwiseGaussian(3, None), "compat must be an array of real numbers; got NoneType"),  # type: ignore[arg-type]
        (lambda: _crf().inference("5"), "niter must be an integer; got str"),  # type: ignore[arg-type]
        (lambda: _crf().stepInference([[1.0]]), "Q must be a writable array of floats.*got list"),  # type: ignore[arg-type]
        (lambda: _crf().stepInference(_read_only(UNARY)), "Q must be a writable .*writeable=False"),
        (lambda: _crf().stepInference(np.ones((3, 108), np.int32)), "Q must be a writable array of floats.*int32"),  # type: ignore[arg-type]
    ],
)
def test_refused_types(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_features_too_large_are_right_or_refused() -> None:
    crf = _crf()
    with pytest.raises(ValueError, match="features"):
        crf.addPairwiseEnergy(np.full((2, POINTS), 1e30), 3)


def test_a_refused_call_changes_nothing() -> None:
    crf = _crf()
    crf.addPairwiseGaussian(3, 3)
    before = crf.inference(2)
    for bad in (
        lambda: crf.setUnaryEnergy(_with(UNARY, np.nan)),
        lambda: crf.addPairwiseGaussian(3, [1, 2]),
        lambda: crf.addPairwiseBilateral(3, 3, _with(IMAGE, np.nan), 3),
        lambda: crf.addPairwiseEnergy(np.ones((2, 5)), 3),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()
    np.testing.assert_array_equal(crf.inference(2), before)
