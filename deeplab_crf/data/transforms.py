"""Images and labels as a network is trained on them: the papers' augmentation. Needs torch.

The arithmetic is NumPy's, which has the same bits in a worker process as in the training process, for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.data.datasets import IGNORE, Example
from deeplab_crf.data.images import BGR_MEAN

MEAN = np.array(BGR_MEAN, np.float32)
Pixels: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop and mirror, as in V2 (section 4 of arXiv 1606.00915).

    crop: side of the square that comes out, in pixels. What lies outside of the image, below and at the right, is the mean,
    and void in the labels. scales: one of them is taken, each as often. mirror: left and right change places in half of the
    cases. colour: c > 0 multiplies red, green and blue (the light), then brightness and contrast, each by a factor from [1 - c, 1
    + c], and saturation by one from [1 - 2c, 1 + 2c], at least 0; not in the papers, for small data sets.
    """

    crop: int
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    colour: float = 0.0

    def __call__(self, example: Example, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """BGR minus the mean, float32 ``(3, crop, crop)``, and labels, int64 ``(crop, crop)``.

        Takes the same ten numbers from the generator whatever the settings, so that none of them changes what the others do.
        """
        chance = generator.random(10)
        scale = self.scales[int(chance[0] * len(self.scales))]
        rows, columns = (
            self._places(length, scale, float(share))
            for length, share in zip(example.labels.shape, chance[1:3], strict=True)
        )
        if self.mirror and chance[3] < 0.5:
            columns = columns[::-1]
        image, labels = bilinear(example.image, rows, columns), nearest(example.labels, rows, columns)
        if self.colour > 0:
            image = jitter(image, self.colour * (2 * chance[4:] - 1))
        seen = np.zeros((3, self.crop, self.crop), np.float32)
        seen[:, : len(rows), : len(columns)] = (image[:, :, ::-1] - MEAN).transpose(2, 0, 1)
        padded = np.full((self.crop, self.crop), IGNORE, np.int64)
        padded[: len(rows), : len(columns)] = labels
        return torch.from_numpy(seen), torch.from_numpy(padded)

    def _places(self, length: int, scale: float, share: float) -> Pixels:
        """Where the crop's pixels lie on an axis of ``length`` pixels, in its pixels: the axis becomes round(scale · length) long
        with its ends where they were, and the crop begins at ``share``, in [0, 1), of the places where it may."""
        scaled = max(round(scale * length), 1)
        first = int(share * (max(scaled - self.crop, 0) + 1))
        inside = np.arange(first, min(first + self.crop, scaled))
        return ((inside + 0.5) * (length / scaled) - 0.5).astype(np.float32)


def bilinear(image: NDArray[np.uint8], rows: Pixels, columns: Pixels) -> Pixels:
    """``image`` ``(H, W, 3)`` at positions between its pixels' centres: ``(len(rows), len(columns), 3)``; outside the nearest."""
    values: NDArray[Any] = image
    for axis, places in ((0, rows), (1, columns)):
        inside = places.clip(0, image.shape[axis] - 1)
        before = inside.astype(np.int64)
        after = np.minimum(before + 1, image.shape[axis] - 1)
        share = (inside - before).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = np.take(values, before, axis).astype(np.float32), np.take(values, after, axis)
        values = first + share * (second - first)
    return values


def nearest(labels: NDArray[np.uint8], rows: Pixels, columns: Pixels) -> NDArray[np.uint8]:
    """``labels`` ``(H, W)`` at the pixels nearest to the positions of `bilinear`."""
    places = [
        np.floor(axis + np.float32(0.5)).astype(np.int64).clip(0, length - 1)
        for axis, length in zip((rows, columns), labels.shape, strict=True)
    ]
    chosen: NDArray[np.uint8] = labels[np.ix_(*places)]
    return chosen


def jitter(image: Pixels, changes: NDArray[Any]) -> Pixels:
    """RGB ``(H, W, 3)`` in 0..255 with red, green, blue, brightness and contrast (about the mean luminance) multiplied by one
    plus the first five of ``changes`` and saturation by one plus twice the sixth, at least 0."""
    light, (brightness, contrast) = 1 + changes[:3].astype(np.float32), 1 + changes[3:5].astype(np.float32)
    saturation = np.float32(max(1 + 2 * changes[5], 0))
    image = (light * brightness * image).clip(0, 255)
    mean = luminance(image).mean()
    image = (contrast * (image - mean) + mean).clip(0, 255)
    gray = luminance(image)[:, :, None]
    result: Pixels = (saturation * (image - gray) + gray).clip(0, 255)
    return result


def luminance(image: Pixels) -> Pixels:
    """``(H, W)`` of RGB ``(H, W, 3)`` by ITU-R BT.601."""
    red, green, blue = image[:, :, 0], image[:, :, 1], image[:, :, 2]
    gray: Pixels = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return gray
