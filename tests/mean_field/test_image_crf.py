"""ImageCRF: lattices of one image kept for any number of scores, and images without colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import samples

from deeplab_crf import Bilateral, Gaussian, ImageCRF, dense_crf

HEIGHT, WIDTH, LABELS = 23, 31, 5
IMAGE = samples.photo(HEIGHT, WIDTH)
UNARIES = [samples.energies(LABELS, HEIGHT * WIDTH, seed=k).reshape(LABELS, HEIGHT, WIDTH) for k in range(3)]


def test_new_scores_on_kept_lattices_equal_separate_calls() -> None:
    crf = ImageCRF(IMAGE, LABELS)
    for unary in [*UNARIES, UNARIES[0]]:
        np.testing.assert_array_equal(crf.infer(unary=unary), dense_crf(IMAGE, unary=unary))
        np.testing.assert_array_equal(crf.infer(logits=-unary), dense_crf(IMAGE, logits=-unary))
        labels = unary.argmin(axis=0)
        labels[0] = 255
        np.testing.assert_array_equal(crf.infer(labels=labels), dense_crf(IMAGE, labels=labels, num_labels=LABELS))


def test_settings_of_a_call() -> None:
    crf = ImageCRF(IMAGE, LABELS, kernels=(Gaussian(2, 2),), normalization="after", dtype=np.float64, threads=1)
    got = crf.infer(unary=UNARIES[0], iterations=7, damping=0.3)
    want = dense_crf(
        IMAGE,
        unary=UNARIES[0],
        kernels=(Gaussian(2, 2),),
        normalization="after",
        dtype=np.float64,
        iterations=7,
        damping=0.3,
    )
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, want)


def test_an_image_is_only_needed_for_colours() -> None:
    kernels = (Gaussian(3, 3), Gaussian((9, 2), 1))
    want = dense_crf(IMAGE, unary=UNARIES[0], kernels=kernels)
    np.testing.assert_array_equal(dense_crf(None, unary=UNARIES[0], kernels=kernels), want)
    crf = ImageCRF(None, LABELS, shape=(HEIGHT, WIDTH), kernels=kernels)
    np.testing.assert_array_equal(crf.infer(unary=UNARIES[0]), want)
    batch = dense_crf(None, unary=np.stack(UNARIES), kernels=kernels)
    np.testing.assert_array_equal(batch[0], want)


def test_what_is_given_beside_a_preset_wins() -> None:
    preset = dense_crf(IMAGE, unary=UNARIES[0], preset="deeplab-v2-resnet101")
    same = dense_crf(IMAGE, unary=UNARIES[0], preset="deeplab-v2-resnet101", iterations=10, normalization="after")
    np.testing.assert_array_equal(preset, same)
    other = dense_crf(IMAGE, unary=UNARIES[0], preset="deeplab-v2-resnet101", iterations=1)
    assert samples.scaled_error(other, preset) > 1e-3


def test_without_an_ignore_label_255_is_a_label_like_others() -> None:
    labels = UNARIES[0].argmin(axis=0).astype(np.uint8)
    labels[0, 0] = 255
    got = dense_crf(IMAGE, labels=labels, num_labels=256, ignore_label=None, kernels=())
    assert got[255, 0, 0] == pytest.approx(0.7)
    with pytest.raises(ValueError, match=r"labels.*255"):
        dense_crf(IMAGE, labels=labels, num_labels=LABELS, ignore_label=None)


def test_bad_arguments() -> None:
    crf = ImageCRF(IMAGE, LABELS)
    with pytest.raises(ValueError, match=r"unary.*\(5, 23, 31\).*\(5, 23, 30\)"):
        crf.infer(unary=UNARIES[0][:, :, :-1])
    with pytest.raises(ValueError, match=r"labels.*\(23, 31\)"):
        crf.infer(labels=np.zeros((23, 30), int))
    with pytest.raises(ValueError, match=r"exactly one"):
        crf.infer()
    with pytest.raises(ValueError, match=r"image.*shape"):
        ImageCRF(None, LABELS, kernels=(Gaussian(),))
    with pytest.raises(ValueError, match=r"image.*Bilateral"):
        ImageCRF(None, LABELS, shape=(HEIGHT, WIDTH), kernels=(Bilateral(),))
    with pytest.raises(ValueError, match=r"image.*24 x 31.*23 x 31"):
        ImageCRF(IMAGE, LABELS, shape=(24, 31))


@pytest.mark.parametrize("kernels", [None, 3, "ab", Bilateral()])
def test_kernels_that_are_no_sequence(kernels: Any) -> None:
    with pytest.raises(TypeError, match="kernels must be a sequence of Gaussian, Bilateral or PairwiseKernel; got"):
        ImageCRF(IMAGE, LABELS, kernels=kernels)
