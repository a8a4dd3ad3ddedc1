"""How much each class counts in the loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.data.datasets import IGNORE, SegmentationFolder


def class_weights(kind: str, photographs: SegmentationFolder) -> Tensor | None:
    """``(C,)`` float32. kind: "none" gives None, all alike; "balanced": see `balanced`, of all labels of ``photographs``, which
    are read for it."""
    if kind == "none":
        return None
    counts = np.zeros(IGNORE + 1, np.int64)
    for i in range(len(photographs)):
        counts += np.bincount(photographs[i].labels.ravel(), minlength=IGNORE + 1)
    return torch.from_numpy(balanced(counts[: len(photographs.classes)])).float()


def balanced(pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights ``(C,)`` proportional to 1 / sqrt(pixels of the class), with mean 1 over the classes that there are; those without a
    pixel get 1."""
    weights = np.ones(len(pixels))
    there = pixels > 0
    rarity = 1 / np.sqrt(pixels[there])
    weights[there] = rarity / rarity.mean()
    return weights
