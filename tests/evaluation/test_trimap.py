"""Trimap bands against dilation by brute force, width by width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.evaluation.trimap import MAX_WIDTH, TrimapScores, band_widths

CLASSES = 4


def blobs(seed: int, shape: tuple[int, int] = (61, 83)) -> np.ndarray:
    """Rectangles of classes over one another, some of them void."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        height, width = rng.integers(1, 25, 2)
        labels[top : top + height, left : left + width] = rng.choice([0, 1, 2, 3, 255])
    return labels


def dilated(mask: np.ndarray, half: int) -> np.ndarray:
    """By a square of 2 * half + 1: every pixel of the mask paints its own."""
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = True
    return out


def border_pixels(labels: np.ndarray) -> np.ndarray:
    out = np.zeros(labels.shape, bool)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                i, j = y + dy, x + dx
                if 0 <= i < height and 0 <= j < width and 255 not in (labels[y, x], labels[i, j]):
                    out[y, x] |= labels[y, x] != labels[i, j]
    return out


def brute_band(labels: np.ndarray, kind: str, width: int) -> np.ndarray:
    if kind == "void":
        return dilated(labels == 255, width)
    return dilated(border_pixels(labels), width - 1)


@pytest.mark.parametrize("kind", ["void", "boundary"])
@pytest.mark.parametrize("seed", range(3))
def test_every_band_is_a_dilation(kind: str, seed: int) -> None:
    labels = blobs(seed)
    widths = band_widths(labels, kind)
    assert widths.dtype == np.uint8
    for width in range(1, MAX_WIDTH + 1):
        np.testing.assert_array_equal(widths <= width, brute_band(labels, kind, width), err_msg=f"w = {width}")


@given(
    st.integers(1, 9).flatmap(
        lambda w: st.lists(st.lists(st.sampled_from([0, 1, 255]), min_size=w, max_size=w), min_size=1, max_size=9)
    ),
    st.sampled_from(["void", "boundary"]),
)
def test_small_images(rows: list[list[int]], kind: str) -> None:
    labels = np.array(rows, np.uint8)
    widths = band_widths(labels, kind)
    for width in (1, 2, 3, 8, 40):
        np.testing.assert_array_equal(widths <= width, brute_band(labels, kind, width))


@pytest.mark.parametrize("kind", ["void", "boundary"])
def test_curves_are_matrices_of_the_pixels_inside(kind: str) -> None:
    rng, scores, whole = np.random.default_rng(0), TrimapScores(CLASSES, kind), ConfusionMatrix(CLASSES)
    bands = {width: ConfusionMatrix(CLASSES) for width in (1, 2, 7, 40)}
    for seed in range(3):
        labels, predicted = blobs(seed), rng.integers(0, CLASSES, (61, 83))
        scores.add(predicted, labels, band_widths(labels, kind))
        whole.add(predicted, labels)
        for width, matrix in bands.items():
            matrix.add(predicted, np.where(brute_band(labels, kind, width), labels, 255))
    np.testing.assert_array_equal(scores.whole.matrix, whole.matrix)
    curves = scores.curves()
    for width, matrix in bands.items():
        np.testing.assert_array_equal(scores.band(width).matrix, matrix.matrix)
        for name, curve in curves.items():
            assert len(curve) == MAX_WIDTH
            assert curve[width - 1] == getattr(matrix, name)


def test_parts_merge_to_the_whole() -> None:
    together, apart = TrimapScores(CLASSES), [TrimapScores(CLASSES) for _ in range(2)]
    for seed in range(4):
        labels, predicted = blobs(seed), np.full((61, 83), seed)
        for scores in (together, apart[seed % 2]):
            scores.add(predicted, labels, band_widths(labels, "boundary"))
    apart[0].merge(apart[1])
    np.testing.assert_array_equal(apart[0].counts, together.counts)
    with pytest.raises(ValueError, match="other must be of kind 'boundary' with 4 classes; got 'void' with 4"):
        together.merge(TrimapScores(CLASSES, "void"))


def test_no_edge_no_band() -> None:
    labels, scores = np.zeros((50, 60), np.uint8), TrimapScores(2)
    scores.add(labels, labels, band_widths(labels, "boundary"))
    assert scores.whole.pixel_accuracy == 1
    assert np.isnan(scores.curves()["mean_iou"]).all()
    scores = TrimapScores(2, "void")
    scores.add(labels, labels, band_widths(labels, "void"))
    assert scores.band(MAX_WIDTH).num_pixels == 0


def test_wrong_input_is_named() -> None:
    labels = np.zeros((3, 3), np.uint8)
    with pytest.raises(ValueError, match="kind must be one of void, boundary; got 'edge'"):
        band_widths(labels, "edge")
    with pytest.raises(ValueError, match="kind must be one of void, boundary; got 'edge'"):
        TrimapScores(2, "edge")
    with pytest.raises(ValueError, match=r"labels must have shape \(H, W\)"):
        band_widths(labels[0], "void")
    with pytest.raises(ValueError, match=r"width must be a whole number in \[1, 40\]; got 41"):
        TrimapScores(2).band(41)
    with pytest.raises(ValueError, match=r"predicted must be in 0\.\.1; got 2"):
        TrimapScores(2).add(labels + np.uint8(2), labels, band_widths(labels, "void"))
