"""The loss that the papers train with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from deeplab_crf.models.deeplab import Scores
from deeplab_crf.models.interp import pad_bottom_right

IGNORE = 255


def training_loss(scores: Scores, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy of `DeepLab.scores` with the labels of the pixels over which scores stand: ``labels[:, ::8, ::8]``.

    With multi-scale inputs the sum of four: fused, scale 1, scale 0.75 (section 4.1.2 of arXiv 1606.00915), and scale 0.5 at its
    own size with ``labels[:, ::16, ::16]``. Each is the mean over the pixels that are not ignored; 0 where all are.

    labels: integers ``(B, H, W)`` of the size of the images, which are padded as the images are, with ``ignore_index``.
    """
    if labels.ndim != 3 or len(labels) != len(scores.fused) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape ({len(scores.fused)}, H, W); got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.shape[1] > scores.size[0] or labels.shape[2] > scores.size[1]:
        raise ValueError(
            f"labels must have the size of the images; got {tuple(labels.shape[1:])}, padded images {scores.size}"
        )
    padded = pad_bottom_right(labels.long(), scores.size, fill=ignore_index)
    return sum(
        (_cross_entropy(each, padded, ignore_index) for each in scores.scales),
        _cross_entropy(scores.fused, padded, ignore_index),
    )


def _cross_entropy(scores: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean over the labels under the scores."""
    steps = [(labels.shape[axis] - 1) // max(scores.shape[axis + 1] - 1, 1) or 1 for axis in (1, 2)]
    targets = labels[:, :: steps[0], :: steps[1]]
    total = F.cross_entropy(scores, targets, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)
