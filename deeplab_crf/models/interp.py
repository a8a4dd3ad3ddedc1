"""Sizes and resizing as in DeepLab's Caffe: everything is aligned at corners, sizes are multiples plus one.

With n = 8k + 1 pixels, ceil-mode pooling and strides give k + 1 scores, and score i stands over pixel 8i.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def padded_size(size: int, multiple: int) -> int:
    """The smallest ``multiple * k + 1`` that is no less than ``size``."""
    return -(-(size - 1) // multiple) * multiple + 1


def scaled_size(size: int, scale: float) -> int:
    """What Interp makes of ``size`` pixels, of which the first and the last stay where they are: 321 at 0.75 are 241."""
    return int((size - 1) * scale) + 1


def interp(values: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Caffe's Interp layer: bilinear, output pixel i at input position ``i * (in - 1) / (out - 1)``.

    values: ``(B, C, H, W)``. size: rows and columns of the result. align_corners: False puts output pixel i at ``(i + 1/2) * in /
    out - 1/2`` instead.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def scaled_image(images: Tensor, scale: float, align_corners: bool = True) -> Tensor:
    """Images ``(B, C, H, W)`` at a smaller scale, as a multi-scale network sees them: `scaled_size` by `interp`, or, without
    aligned corners, as kazuto1011/deeplab-pytorch makes them: ``scale * H`` rounded down, pixel i at ``(i + 1/2) / scale -
    1/2``."""
    rows, columns = images.shape[-2], images.shape[-1]
    if align_corners:
        return interp(images, (scaled_size(rows, scale), scaled_size(columns, scale)))
    if min(rows, columns) * scale < 1:
        return interp(images, (max(int(rows * scale), 1), max(int(columns * scale), 1)), align_corners=False)
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Images ``(B, C, H, W)`` at another size, as image libraries do it: bilinear between the centres of pixels, which are
    square and fill the image; averaged where it shrinks."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    one_column = 1 in (values.shape[-1], size[1])  # where torch (2.13) gives the first row everywhere
    if one_column:
        values, size = values.mT.contiguous(), (size[1], size[0])
    resized = F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.mT if one_column else resized


def size_with_longer_side(size: tuple[int, int], longer_side: int | None) -> tuple[int, int]:
    """Rows and columns, in the same proportion, whose greater is ``longer_side``; None: as they are."""
    if longer_side is None:
        return size
    scale = longer_side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def image_scores(scores: Tensor, padded: tuple[int, int], seen: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """Scores for the pixels of an image ``(B, C, H, W)`` from a network's ``(B, C, h, w)``.

    padded: rows and columns of what the network saw, on whose corners the corners of ``scores`` lie. seen: the same without its
    padding. image: the size (H, W) of the image, which was resized to ``seen``.
    """
    size = (scores.shape[-2], scores.shape[-1])
    if size == padded or seen == image:
        return resize(interp(scores, padded)[..., : seen[0], : seen[1]], image)
    rows, columns = (_axis_weights(*lengths).to(scores) for lengths in zip(size, padded, seen, image, strict=True))
    return rows @ scores @ columns.T


@lru_cache(maxsize=32)
def _axis_weights(scores: int, padded: int, seen: int, image: int) -> Tensor:
    """What the two steps of `image_scores` do to one axis, ``(image, scores)``: both are linear, and the image between them has
    several times the numbers of what goes in and comes out."""
    with torch.inference_mode(False), torch.no_grad():  # whoever asks first, all others may differentiate
        basis = torch.eye(scores, dtype=torch.float64).reshape(1, scores, scores, 1)
        return resize(interp(basis, (padded, 1))[..., :seen, :], (image, 1))[0, :, :, 0].T.float()


def pad_bottom_right(values: Tensor, size: tuple[int, int], fill: float = 0.0) -> Tensor:
    """``(..., H, W)`` with ``fill`` below and at the right, up to ``size``: where DeepLab pads, so that pixel (0, 0) stays."""
    below, right = size[0] - values.shape[-2], size[1] - values.shape[-1]
    return values if below == right == 0 else F.pad(values, (0, right, 0, below), value=fill)
