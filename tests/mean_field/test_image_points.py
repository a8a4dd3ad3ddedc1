"""The walk through the pixels of an image, and their features in its order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import DTypeLike

from deeplab_crf import MeanField
from deeplab_crf.core.image_points import ImagePoints, tile_order


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (70, 1), (15, 17), (64, 64), (65, 63), (130, 200)])
def test_the_walk_meets_every_pixel_once(height: int, width: int) -> None:
    order = tile_order(height, width)
    np.testing.assert_array_equal(np.sort(order), np.arange(height * width))
    # The first tile of 16 x 16 comes before anything else.
    rows, columns = np.divmod(order[: min(16, height) * min(16, width)], width)
    assert rows.max(initial=0) < 16
    assert columns.max(initial=0) < 16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("image_dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 1), (33, 47, 3), (20, 130, 5)])
def test_features_are_single_divisions(
    height: int, width: int, channels: int, image_dtype: DTypeLike, dtype: DTypeLike
) -> None:
    image = np.random.default_rng(height).integers(0, 255, (height, width, channels)).astype(image_dtype)
    points = ImagePoints(height, width, np.dtype(dtype))
    widths = tuple(3.7 + channel for channel in range(channels))
    features = points.colour_features((2.3, 5.1), image, widths)
    rows, columns = np.divmod(points.order, width)
    scalar = np.dtype(dtype).type
    expected = [columns.astype(dtype) / scalar(2.3), rows.astype(dtype) / scalar(5.1)]
    expected += [
        image.reshape(-1, channels)[points.order, channel].astype(dtype) / scalar(scale)
        for channel, scale in enumerate(widths)
    ]
    np.testing.assert_array_equal(features, np.stack(expected))
    np.testing.assert_array_equal(points.position_features((2.3, 5.1)), np.stack(expected[:2]))


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1], [0, 1, 3], [-1, 0, 1]])
def test_an_order_must_be_a_permutation(order: list[int]) -> None:
    with pytest.raises(ValueError, match=r"order must be a permutation of 0\.\.2"):
        MeanField(3, 2, order=np.array(order, np.int32))


def test_the_order_of_the_walk_does_not_show() -> None:
    rng = np.random.default_rng(0)
    features, unary = rng.normal(size=(3, 200)).astype(np.float32), rng.normal(size=(4, 200))
    order = rng.permutation(200).astype(np.int32)
    straight, walked = MeanField(200, 4), MeanField(200, 4, order=order)
    straight.add_kernel(features, 2.0)
    walked.add_kernel(features[:, order], 2.0)
    for settings in ({}, {"damping": 0.3}, {"q": rng.dirichlet(np.ones(4), 200).T}):
        expected, result = (crf.inference(unary, 3, **settings).probabilities for crf in (straight, walked))
        np.testing.assert_allclose(result, expected, atol=2e-6)
    assert walked.energy(unary, expected).kl == pytest.approx(straight.energy(unary, expected).kl, rel=1e-5)
