"""How much each class counts in the loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.evaluation.class_pixels import count_pixels


def class_weights(kind: str, photographs: SegmentationFolder) -> Tensor | None:
    """``(C,)`` float32. kind: "none" gives None, all alike; "balanced": see `balanced`, of all labels of ``photographs``, which
    are read for it."""
    if kind == "none":
        return None
    return torch.from_numpy(balanced(count_pixels(photographs)[: len(photographs.classes)])).float()


def balanced(pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights ``(C,)`` proportional to 1 / sqrt(pixels of the class), with mean 1 over the classes that there are; those without a
    pixel get 1, as all do where none has one."""
    weights = np.ones(len(pixels))
    there = pixels > 0
    if not there.any():
        return weights
    rarity = 1 / np.sqrt(pixels[there])
    weights[there] = rarity / rarity.mean()
    return weights
