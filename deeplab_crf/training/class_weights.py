"""The weight of each class in the loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.evaluation.class_pixels import count_pixels


def class_weights(kind: str, dataset: SegmentationFolder) -> Tensor | None:
    """Return the weight of each class, float32 ``(C,)``.

    Args:
        kind: "none" or "balanced"; see `balanced`.
        dataset: All its label images are read for "balanced".

    Returns:
        The weights; None for "none", where all classes count alike.
    """
    if kind == "none":
        return None
    return torch.from_numpy(balanced(count_pixels(dataset)[: len(dataset.classes)])).float()


def balanced(pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights ``(C,)`` proportional to 1 / sqrt(pixels of the class).

    Their mean is 1 over the classes that have pixels; classes without a pixel get 1.

    Args:
        pixels: The pixels of each class, ``(C,)``.
    """
    weights = np.ones(len(pixels))
    there = pixels > 0
    if not there.any():
        return weights
    rarity = 1 / np.sqrt(pixels[there])
    weights[there] = rarity / rarity.mean()
    return weights
