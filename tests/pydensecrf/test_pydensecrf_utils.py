"""The contract of `pydensecrf.utils`: values to the last bit where pydensecrf has one, errors where it has garbage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import samples

import deeplab_crf.pydensecrf.densecrf as dcrf
from deeplab_crf.pydensecrf import utils

INTEGER_TYPES = [np.uint8, np.int8, np.int32, np.uint64, np.float32, list]


def _as(values: Any, kind: Any) -> Any:
    return values if kind is list else np.array(values, kind)


# -- unary_from_labels ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_labels_with_an_unsure_one(kind: Any) -> None:
    unsure, right, wrong = -np.log([1 / 3, 0.8, 0.1])
    got = utils.unary_from_labels(_as([[0, 1], [2, 3]], kind), 3, 0.8)
    want = [[unsure, right, wrong, wrong], [unsure, wrong, right, wrong], [unsure, wrong, wrong, right]]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array(want, np.float32))


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_labels_without_an_unsure_one(kind: Any) -> None:
    right, wrong = -np.log([0.7, 0.15])
    got = utils.unary_from_labels(_as([0, 2, 1], kind), 3, gt_prob=0.7, zero_unsure=False)
    want = [[right, wrong, wrong], [wrong, wrong, right], [wrong, right, wrong]]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


def test_boolean_mask() -> None:
    mask = np.array([True, False])
    np.testing.assert_array_equal(
        utils.unary_from_labels(mask, 2, 0.9, zero_unsure=False),
        utils.unary_from_labels([1, 0], 2, 0.9, zero_unsure=False),
    )


def test_one_label() -> None:
    np.testing.assert_array_equal(utils.unary_from_labels([0, 1], 1, 0.5), np.array([[0.0, np.log(2)]], np.float32))
    np.testing.assert_array_equal(utils.unary_from_labels([0], 1, 0.5, False), np.array([[np.log(2)]], np.float32))


REFUSED_LABELS: list[tuple[Callable[[], Any], str]] = [
    (lambda: utils.unary_from_labels([0, 4, 9], 3, 0.7), r"labels .* in 0\.\.3, 0 meaning unsure.* got 4, 9"),
    (lambda: utils.unary_from_labels([0, 3], 3, 0.7, False), r"labels .* in 0\.\.2 .*zero_unsure=False.* got 3"),
    (lambda: utils.unary_from_labels(np.array([7, 255], np.uint8), 21, 0.7), r"labels .* got 255"),
    (lambda: utils.unary_from_labels([-3, 1], 3, 0.7), "labels .* got -3"),
    (lambda: utils.unary_from_labels([-4, 1], 3, 0.7, zero_unsure=False), "labels .* got -4"),
    (lambda: utils.unary_from_labels(np.arange(99), 3, 0.7), r"labels .* got 4, 5, 6, 7, 8, \.\.\."),
    (lambda: utils.unary_from_labels([0.5, 1.0], 3, 0.7), "labels must be whole numbers .* got 0.5"),
    (lambda: utils.unary_from_labels([np.nan, 1.0], 3, 0.7), "labels must be finite"),
    (lambda: utils.unary_from_labels([], 3, 0.7), "labels must not be empty"),
    (lambda: utils.unary_from_labels([1], 0, 0.7), "n_labels must be 1 or more; got 0"),
    (lambda: utils.unary_from_labels([1], 3, 0.0), "gt_prob must be above 0"),
    (lambda: utils.unary_from_labels([1], 3, 1.0), "gt_prob must be below 1"),
    (lambda: utils.unary_from_labels([1], 3, 70), "gt_prob must be above 0 and at most 1; got 70"),
    (lambda: utils.unary_from_labels([1], 3, np.nan), "gt_prob must be above 0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED_LABELS)
def test_refused_labels(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("zero_unsure", [True, False])
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float64])
def test_negative_labels_count_from_the_last(dtype: Any, zero_unsure: bool, caplog: pytest.LogCaptureFixture) -> None:
    """pydensecrf indexes rows with ``labels - 1`` or ``labels``, so that NumPy counts negative ones from the end."""
    labels = np.array([-1, 1, 2, -2, 0], dtype)
    got = utils.unary_from_labels(labels, 3, 0.7, zero_unsure)
    rows = labels.astype(int) - (1 if zero_unsure else 0)
    want = np.full((3, 5), -np.log(0.3 / 2), np.float32)
    want[rows, np.arange(5)] = -np.log(0.7)
    if zero_unsure:
        want[:, 4] = -np.log(1 / 3)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert "-2 is taken for label 1. Map pixels to be ignored to 0 and use zero_unsure=True" in caplog.text


# -- unary_from_softmax -----------------------------------------------------------------------------------------------
PROBABILITIES = np.array([[[0.0, 0.25], [1.0, 0.5]], [[1.0, 0.75], [0.0, 0.5]]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax(dtype: Any) -> None:
    given = PROBABILITIES.astype(dtype)
    got = utils.unary_from_softmax(given)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, -np.log(np.maximum(PROBABILITIES, 1e-5)).reshape(2, 4), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(given, PROBABILITIES.astype(dtype))


def test_softmax_scale_and_clip() -> None:
    scaled = -np.log(0.8 * PROBABILITIES + 0.2 * 0.5).reshape(2, 4)
    np.testing.assert_allclose(utils.unary_from_softmax(PROBABILITIES, 0.8), scaled, rtol=1e-6)
    np.testing.assert_allclose(utils.unary_from_softmax(PROBABILITIES, scale=0.8, clip=None), scaled, rtol=1e-6)
    clipped = -np.log(np.clip(PROBABILITIES, 0.3, 1.0)).reshape(2, 4)
    np.testing.assert_allclose(utils.unary_from_softmax(PROBABILITIES, clip=0.3), clipped, rtol=1e-6)
    np.testing.assert_allclose(utils.unary_from_softmax(2 * PROBABILITIES, 1.0)[1, :2], 0.0, atol=0)


def test_unclipped_zeros_stay_finite() -> None:
    unary = utils.unary_from_softmax(PROBABILITIES.astype(np.float32), clip=None)
    assert unary[0, 0] == pytest.approx(87.3365)
    crf = dcrf.DenseCRF(4, 2)
    crf.setUnaryEnergy(unary)
    np.testing.assert_allclose(crf.inference(0), PROBABILITIES.reshape(2, 4), atol=1e-6)


def test_a_clip_of_zero_is_none() -> None:
    np.testing.assert_array_equal(
        utils.unary_from_softmax(PROBABILITIES, clip=0), utils.unary_from_softmax(PROBABILITIES, clip=None)
    )
    assert utils.unary_from_softmax([[-1e-9, 1.0]], clip=0)[0, 0] == pytest.approx(87.3365)


def test_softmax_of_a_transposed_score_map_fits() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5))  # (H, W, C)
    unary = utils.unary_from_softmax(scores.transpose(2, 0, 1))
    crf = dcrf.DenseCRF2D(5, 4, 3)
    crf.setUnaryEnergy(unary)
    np.testing.assert_allclose(np.array(crf.inference(0)).reshape(3, 4, 5), scores.transpose(2, 0, 1), atol=2e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: utils.unary_from_softmax([[np.nan, 1.0]]), r"sm must be finite .*nan at index \(0, 0\)"),
        (lambda: utils.unary_from_softmax([[np.inf, 1.0]]), "sm must be finite"),
        (lambda: utils.unary_from_softmax([[-1.0, 1.0]], clip=None), "sm must hold probabilities; got -1"),
        (lambda: utils.unary_from_softmax(0.5), r"sm must have shape \(classes, ...\)"),
        (lambda: utils.unary_from_softmax(np.zeros((0, 4))), r"sm must .* got \(0, 4\)"),
        (lambda: utils.unary_from_softmax(PROBABILITIES, scale=1.5), "scale must be above 0 and at most 1; got 1.5"),
        (lambda: utils.unary_from_softmax(PROBABILITIES, scale=0), "scale must be above 0"),
        (lambda: utils.unary_from_softmax(PROBABILITIES, clip=-0.1), "clip must be above 0"),
    ],
)
def test_refused_softmax(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_deprecated_names_log_and_work(caplog: pytest.LogCaptureFixture) -> None:
    """The texts are pydensecrf's (its utils.py), and so is the way: no warning of Python's, which -W error would raise."""
    unary = utils.compute_unary([0, 1, 2], 2)
    np.testing.assert_array_equal(unary, utils.unary_from_labels([0, 1, 2], 2, 0.5))
    unary = utils.softmax_to_unary(PROBABILITIES)
    np.testing.assert_array_equal(unary, utils.unary_from_softmax(PROBABILITIES, clip=None))
    unary = utils.softmax_to_unary(PROBABILITIES, GT_PROB=0.7)
    np.testing.assert_array_equal(unary, utils.unary_from_softmax(PROBABILITIES, 0.7, clip=None))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert caplog.messages == [
        "pydensecrf.compute_unary is deprecated, use unary_from_labels instead.",
        "pydensecrf.softmax_to_unary is deprecated, use unary_from_softmax instead.",
        "pydensecrf.softmax_to_unary is deprecated, use unary_from_softmax instead.",
    ]


# -- create_pairwise_* ------------------------------------------------------------------------------------------------
def test_gaussian_features_are_rows_first() -> None:
    got = utils.create_pairwise_gaussian(sdims=(2, 5), shape=(2, 3))
    assert got.dtype == np.float32
    want = np.array([[0, 0, 0, 0.5, 0.5, 0.5], [0, 0.2, 0.4, 0, 0.2, 0.4]], np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        utils.create_pairwise_gaussian(2, (2, 3)), utils.create_pairwise_gaussian((2, 2), (2, 3))
    )


@pytest.mark.parametrize("width", [7, 11.3, np.float32(0.7), np.float64(11.3)])
def test_positions_are_divided_once(width: Any) -> None:
    positions = np.arange(500, dtype=np.float32)
    positions /= width  # as pydensecrf does it, NumPy's promotion included
    np.testing.assert_array_equal(utils.create_pairwise_gaussian([width], [500])[0], positions)


def test_gaussian_features_of_a_volume() -> None:
    got = utils.create_pairwise_gaussian([1, 2, 4], [2, 3, 5]).reshape(3, 2, 3, 5)
    first, second, third = np.mgrid[:2, :3, :5]
    np.testing.assert_array_equal(got, [first, second / 2, third / 4])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("chdim", [0, 1, 2, -2, -3])
def test_bilateral_features(dtype: Any, chdim: int) -> None:
    image = samples.photo(3, 4).astype(dtype)
    got = utils.create_pairwise_bilateral((2, 5), (7, 11, 13), np.moveaxis(image, 2, chdim), chdim=chdim)
    widths = np.array([7, 11, 13], np.float32)
    channels = (image.astype(np.float32) / widths).reshape(-1, 3).T
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.concatenate([utils.create_pairwise_gaussian((2, 5), (3, 4)), channels]))


def test_bilateral_features_without_channel_axis() -> None:
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    got = utils.create_pairwise_bilateral((1, 2, 3), (5,), volume)
    np.testing.assert_array_equal(got[:3], utils.create_pairwise_gaussian((1, 2, 3), (2, 3, 4)))
    np.testing.assert_array_equal(got[3], np.arange(24, dtype=np.float32) / np.float32(5))
    np.testing.assert_array_equal(got, utils.create_pairwise_bilateral((1, 2, 3), 5, volume, chdim=-1))


def test_axes_and_channels_without_a_width_are_not_scaled() -> None:
    """CellSeg3D (code_models/crf.py) gives three sdims for an image (1, H, W, D) without a channel axis."""
    volume = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        utils.create_pairwise_bilateral(sdims=(3, 4, 5), schan=(2,), img=volume, chdim=-1),
        utils.create_pairwise_bilateral(sdims=(3, 4, 5, 1), schan=(2,), img=volume, chdim=-1),
    )
    np.testing.assert_array_equal(
        utils.create_pairwise_gaussian((3,), (4, 5)), utils.create_pairwise_gaussian((3, 1), (4, 5))
    )
    planes = np.zeros((3, 8, 9), "f4") + np.arange(3, dtype="f4")[:, None, None]
    np.testing.assert_array_equal(
        utils.create_pairwise_bilateral((25, 25), (0.05, 0.05), planes, chdim=0),
        utils.create_pairwise_bilateral((25, 25), (0.05, 0.05, 1), planes, chdim=0),
    )
    np.testing.assert_array_equal(
        utils.create_pairwise_bilateral((), (), planes, chdim=0),
        utils.create_pairwise_bilateral(1, 1, planes, chdim=0),
    )


def test_one_number_for_all_channels() -> None:
    image = samples.photo(3, 4)
    np.testing.assert_array_equal(
        utils.create_pairwise_bilateral((2, 5), 7, image, 2),
        utils.create_pairwise_bilateral((2, 5), (7, 7, 7), image, 2),
    )


def test_utils_and_two_dimensional_methods_are_one_model() -> None:
    height, width, labels = 11, 8, 3
    image, unary = samples.photo(height, width), samples.energies(labels, height * width)
    results = []
    for generic in (False, True):
        crf = dcrf.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy(unary)
        if generic:
            crf.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 3), (height, width)), 3)
            crf.addPairwiseEnergy(utils.create_pairwise_bilateral((20, 30), (9, 8, 7), image, chdim=2), 5)
        else:
            crf.addPairwiseGaussian((3, 2), 3)
            crf.addPairwiseBilateral((30, 20), (9, 8, 7), image, 5)
        results.append(crf.inference(3))
    # Axes in another order make another lattice: the same model up to its approximation.
    np.testing.assert_allclose(results[0], results[1], atol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: utils.create_pairwise_gaussian((3, 3, 3), (4, 5)),
            r"sdims must be one number or up to 2 \(one an axis of \(4, 5\)\); got 3",
        ),
        (lambda: utils.create_pairwise_gaussian((3, 0), (4, 5)), "sdims must be positive"),
        (lambda: utils.create_pairwise_gaussian((3, 3), (4, 0)), "shape must be 1 or more; got 0"),
        (lambda: utils.create_pairwise_gaussian((), ()), "shape must have one axis or more"),
        (
            lambda: utils.create_pairwise_bilateral((3, 3), (1, 1, 1, 1), np.ones((4, 5, 3)), 2),
            r"schan .*\(4, 5, 3\)\); got 4",
        ),
        (lambda: utils.create_pairwise_bilateral((3, 3, 3), (1, 1, 1), np.ones((4, 5, 3))), "schan .*chdim=-1 means"),
        (lambda: utils.create_pairwise_bilateral((3, 3), 1, np.ones(5)), r"sdims .* 1 .*got 2"),
        (lambda: utils.create_pairwise_bilateral((3, 0), 1, np.ones((4, 5, 6))), "sdims must be positive"),
        (lambda: utils.create_pairwise_bilateral((3, 3), 0, np.ones((4, 5))), "schan must be positive"),
        (lambda: utils.create_pairwise_bilateral((3, 3), 1, np.ones((4, 5)), chdim=2), r"chdim .*\(4, 5\).* got 2"),
        (lambda: utils.create_pairwise_bilateral((3, 3), 1, [[np.nan]]), r"img must be finite .*nan at index \(0, 0\)"),
        (lambda: utils.create_pairwise_bilateral((3, 3), 1, np.ones((0, 5))), r"img must .*shape \(0, 5\)"),
        (lambda: utils.create_pairwise_bilateral((), 1, np.ones(5), chdim=0), "img must have an axis besides"),
    ],
)
def test_refused_features(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
