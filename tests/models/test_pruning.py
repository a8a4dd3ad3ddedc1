"""A backbone of fewer channels that says what the full one says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deeplab_crf.models.pruning import prune_backbone
from deeplab_crf.models.variants import VGG16
from deeplab_crf.models.vgg import VGG16Backbone


def backbone(channels: int, **options: Any) -> VGG16Backbone:
    torch.manual_seed(channels)
    return VGG16Backbone(VGG16(channels=channels, **options)).eval()


def crops(count: int = 3, size: int = 33) -> Any:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 50


@torch.no_grad()
def unexplained(full: VGG16Backbone, part: VGG16Backbone, images: Any) -> float:
    """Share of the full features' variance that no linear map of the narrow ones gives."""
    wide, have = (each(images).flatten(2).transpose(1, 2).flatten(0, 1).double() for each in (full, part))
    have = torch.cat([have, torch.ones_like(have[:, :1])], 1)
    fit = have @ torch.linalg.pinv(have) @ wide
    return float((wide - fit).square().sum() / (wide - wide.mean(0)).square().sum())


def redundant_backbone() -> VGG16Backbone:
    """Four channels in the first stage, of which every second one is a multiple of the one before: two suffice."""
    full = backbone(4)
    with torch.no_grad():
        for layer in full.features:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight[1::2], layer.bias[1::2] = 0.5 * layer.weight[::2], 0.5 * layer.bias[::2]
    return full


def test_channels_that_follow_from_others_cost_nothing() -> None:
    full, small, images = redundant_backbone(), backbone(2), crops(12, 65)
    errors = prune_backbone(full, small, images)
    assert len(errors) == 13
    assert max(errors) < 1e-4
    assert unexplained(full, small, crops(12, 65)) < 1e-3


def test_as_many_channels_as_before_are_the_same_backbone() -> None:
    full, small, images = backbone(2), backbone(2), crops(12, 65)
    torch.nn.init.normal_(small.features[0].weight)
    prune_backbone(full, small, images)
    with torch.no_grad():
        want, got = full(images), small(images)
    scale = float((got * want).sum() / (got * got).sum())
    assert float((scale * got - want).norm() / want.norm()) < 0.05
    assert float(got.square().mean()) < 4  # of what leaves conv5_3 it is one; pooling takes the largest


def test_what_leaves_each_layer_has_mean_square_one() -> None:
    small, images = backbone(2), crops(12, 65)
    prune_backbone(backbone(4), small, images)
    values, squares = images, []
    with torch.no_grad():
        for layer in small.features:
            values = layer(values)
            if isinstance(layer, torch.nn.ReLU):
                squares.append(float(values.square().mean()))
    assert squares == pytest.approx([1.0] * 13, rel=1e-3)


def test_features_stay_closer_than_those_of_plain_halving() -> None:
    full, small, plain, images = backbone(4), backbone(2), backbone(2), crops(6, 49)
    prune_backbone(full, small, images)
    assert unexplained(full, small, images) < 0.7 * unexplained(full, plain, images)


def test_the_same_images_and_seed_give_the_same_numbers() -> None:
    first, second = backbone(2), backbone(2)
    for each in (first, second):
        prune_backbone(backbone(4), each, crops())
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("full", "small", "images", "message"),
    [
        (4, 2, torch.zeros(1, 1, 9, 9), r"images must have shape \(B, 3, H, W\).*\(1, 1, 9, 9\)"),
        (4, 2, torch.zeros(0, 3, 9, 9), "images must have shape"),
        (2, 4, torch.zeros(1, 3, 9, 9), "at most the 2 channels of full in conv1; got 4"),
    ],
)
def test_what_does_not_fit_is_refused(full: int, small: int, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_backbone(backbone(full), backbone(small), images)


def test_layers_must_agree() -> None:
    with pytest.raises(ValueError, match="average_pool must agree"):
        prune_backbone(backbone(4), backbone(2, average_pool=True), crops())
