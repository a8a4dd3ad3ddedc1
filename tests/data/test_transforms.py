"""The papers' augmentation: scale, mirror, crop and padding, each by a property that it must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import photo

from deeplab_crf.data.datasets import Example
from deeplab_crf.data.images import BGR_MEAN
from deeplab_crf.data.transforms import Augmentation, bilinear, jitter, nearest

MEAN = torch.tensor(BGR_MEAN).reshape(3, 1, 1)


def example(height: int = 24, width: int = 32) -> Example:
    labels = np.random.default_rng(3).integers(0, 5, (height, width)).astype(np.uint8)
    return Example("a", photo(height, width), labels)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def as_seen(image: np.ndarray) -> torch.Tensor:
    """BGR minus the mean, without any augmentation."""
    return torch.tensor(image[:, :, ::-1].copy()).permute(2, 0, 1) - MEAN


def test_padding_is_below_and_at_the_right_the_mean_and_void() -> None:
    sample = example()
    image, labels = Augmentation(crop=40)(sample, generator())
    assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert image.shape == (3, 40, 40)
    assert torch.equal(image[:, :24, :32], as_seen(sample.image))
    assert torch.equal(labels[:24, :32], torch.tensor(sample.labels).long())
    assert not image[:, 24:].any()
    assert not image[:, :, 32:].any()
    assert bool((labels[24:] == 255).all())
    assert bool((labels[:, 32:] == 255).all())


def test_crops_are_windows_and_every_place_comes() -> None:
    sample = example()
    whole, ids = as_seen(sample.image), torch.tensor(sample.labels).long()
    seen = set()
    for seed in range(200):
        image, labels = Augmentation(crop=22)(sample, generator(seed))
        places = [
            (top, left)
            for top in range(3)
            for left in range(11)
            if torch.equal(ids[top : top + 22, left : left + 22], labels)
        ]
        ((top, left),) = places
        assert torch.equal(whole[:, top : top + 22, left : left + 22], image)
        seen.add((top, left))
    assert len(seen) == 33


def test_mirrored_in_half_of_the_cases_the_padding_stays_at_the_right() -> None:
    sample = example()
    plain = Augmentation(crop=40)(sample, generator())
    mirrored = 0
    for seed in range(100):
        image, labels = Augmentation(crop=40, mirror=True)(sample, generator(seed))
        if torch.equal(labels, plain[1]):
            assert torch.equal(image, plain[0])
            continue
        mirrored += 1
        assert torch.equal(labels[:, :32].flip(1), plain[1][:, :32])
        assert torch.equal(image[:, :, :32].flip(2), plain[0][:, :, :32])
        assert bool((labels[:, 32:] == 255).all())
    assert 35 < mirrored < 65


def test_scales_come_equally_often_and_labels_go_with_the_image() -> None:
    """An image whose colours are its labels is one after scaling, too, but for the pixels along edges."""
    ids = np.repeat(np.repeat(np.arange(12).reshape(3, 4), 20, 0), 20, 1).astype(np.uint8)
    sample = Example("a", np.repeat(ids[:, :, None], 3, 2) * np.uint8(20), ids)
    sizes = []
    for seed in range(200):
        image, labels = Augmentation(crop=128, scales=(0.5, 0.75, 1.0, 1.25, 1.5))(sample, generator(seed))
        inside = labels != 255
        height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert int(inside.sum()) == height * width
        sizes.append((height, width))
        shown = (image + MEAN)[:, inside] / 20
        assert ((shown - labels[inside]).abs().amax(0) < 0.01).float().mean() > 0.8
        assert (shown - labels[inside]).abs().max() < 3
    assert set(sizes) == {(30, 40), (45, 60), (60, 80), (75, 100), (90, 120)}
    assert min(sizes.count(size) for size in set(sizes)) > 20


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5])
def test_resizing_is_torch_s_with_pixels_between_centres(scale: float) -> None:
    sample = example(44, 60)
    height, width = round(44 * scale), round(60 * scale)
    image, labels = Augmentation(crop=96, scales=(scale,))(sample, generator())
    values = torch.tensor(sample.image).permute(2, 0, 1)[None].float()
    want = torch.nn.functional.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)[0]
    assert (image[:, :height, :width] + MEAN - want.flip(0)).abs().max() < 0.01
    ids = torch.tensor(sample.labels)[None, None]
    want = torch.nn.functional.interpolate(ids, size=(height, width), mode="nearest-exact")[0, 0]
    assert (labels[:height, :width] == want).float().mean() > 0.99  # but for ties
    assert bool((labels[height:] == 255).all())


def test_an_edge_stays_where_it_is_in_image_and_labels() -> None:
    labels = np.zeros((8, 64), np.uint8)
    labels[:, 32:] = 1
    for width in (32, 48, 80, 96):
        rows, columns = np.arange(8, dtype=np.float32), ((np.arange(width) + 0.5) * 64 / width - 0.5).astype(np.float32)
        image = bilinear(np.repeat(labels[:, :, None], 3, 2), rows, columns)
        ids = nearest(labels, rows, columns)
        np.testing.assert_array_equal(image[:, :, 0] > 0.5, ids == 1)
        np.testing.assert_array_equal(ids[:, ::-1], 1 - ids)


def test_the_generator_alone_decides() -> None:
    everything = Augmentation(crop=30, scales=(0.5, 1.0, 1.5), mirror=True, colour=0.3)
    first, second = (everything(example(), generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], everything(example(), generator(6))[0])
    without_colour = Augmentation(crop=30, scales=(0.5, 1.0, 1.5), mirror=True)(example(), generator(5))
    assert torch.equal(without_colour[1], first[1])  # the geometry is the same
    assert not torch.equal(without_colour[0], first[0])


def test_colours() -> None:
    image = photo(12, 16).astype(np.float32) / 2 + 40  # far from 0 and 255
    gray = image @ np.float32([0.299, 0.587, 0.114])
    np.testing.assert_allclose(jitter(image, np.zeros(6)), image, atol=1e-4)
    np.testing.assert_allclose(jitter(image, np.array([0, 0, 0, 0.2, 0, 0])), 1.2 * image, atol=1e-3)
    np.testing.assert_allclose(
        jitter(image, np.array([0, 0, 0, 0, -1, 0])), np.full((12, 16, 3), gray.mean()), atol=1e-3
    )
    np.testing.assert_allclose(
        jitter(image, np.array([0, 0, 0, 0, 0, -0.5])), np.repeat(gray[..., None], 3, 2), atol=1e-3
    )
    np.testing.assert_allclose(
        jitter(image, np.array([0, 0, 0, 0, 0, -0.9])), np.repeat(gray[..., None], 3, 2), atol=1e-3
    )
    tinted = jitter(image, np.array([-0.5, 0, 0.1, 0, 0, 0]))
    np.testing.assert_allclose(tinted, image * np.array([0.5, 1, 1.1]), atol=1e-3)
    assert jitter(image, np.array([0, 0, 0, 99.0, 0, 0])).max() == 255


def test_colour_leaves_the_padding_the_mean() -> None:
    image, _ = Augmentation(crop=40, colour=0.5)(example(), generator())
    assert not image[:, 24:].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_show(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    big = example(300, 400)
    augmentation = Augmentation(crop=321, scales=(1.25,), mirror=True, colour=0.4)
    want = augmentation(big, generator())[0]
    torch.set_num_threads(threads)
    got = augmentation(big, generator())[0]
    torch.set_num_threads(before)
    assert torch.equal(got, want)
