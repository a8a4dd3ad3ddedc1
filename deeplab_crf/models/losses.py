"""The loss that the papers train with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_crf.models.deeplab import Scores
from deeplab_crf.models.interp import pad_bottom_right

IGNORE = 255
STRIDES = (8, 16)  # of scores in training, in pixels of the image: of scales 1 and 0.75, and of scale 0.5


def training_loss(
    scores: Scores,
    labels: Tensor,
    ignore_index: int = IGNORE,
    *,
    weight: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of `DeepLab.scores` with the labels of the pixels over which scores stand: ``labels[:, ::8, ::8]``.

    With multi-scale inputs the sum of four: fused, scale 1, scale 0.75 (section 4.1.2 of arXiv 1606.00915), and scale 0.5 at its
    own size with ``labels[:, ::16, ::16]``. Each is the mean over the pixels that are not ignored; 0 where all are.

    labels: integers ``(B, H, W)`` of the size of the images, which are padded as the images are, with ``ignore_index``. weight:
    ``(C,)``, of each class, which makes the means weighted ones. totals: what the sums are divided by, instead of these pixels'
    own: `loss_totals` of a whole batch of which this is a part. The parts' losses then add up to the batch's.
    """
    if labels.ndim != 3 or len(labels) != len(scores.fused) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape ({len(scores.fused)}, H, W); got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.shape[1] > scores.size[0] or labels.shape[2] > scores.size[1]:
        raise ValueError(
            f"labels must have the size of the images; got {tuple(labels.shape[1:])}, padded images {scores.size}"
        )
    classes = scores.fused.shape[1]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight must have shape ({classes},), a number a class; got {tuple(weight.shape)}")
    padded = pad_bottom_right(labels.long(), scores.size, fill=ignore_index)
    full, half = (None, None) if totals is None else totals
    terms = [(scores.fused, full), *zip(scores.scales, (full, full, half), strict=False)]
    return torch.stack([_cross_entropy(*term, padded, ignore_index, weight) for term in terms]).sum()


def loss_totals(labels: Tensor, ignore_index: int = IGNORE, *, weight: Tensor | None = None) -> Tensor:
    """What the two means of `training_loss` divide by, float32 ``(2,)``: how many labels there are (or their summed weights) that
    are not ignored among ``labels[:, ::8, ::8]`` and ``labels[:, ::16, ::16]``."""
    return torch.stack([_total(labels[:, ::stride, ::stride].long(), ignore_index, weight) for stride in STRIDES])


def _cross_entropy(
    scores: Tensor, total: Tensor | None, labels: Tensor, ignore_index: int, weight: Tensor | None
) -> Tensor:
    """Sum over the labels under the scores, by ``total`` or by how many there are."""
    steps = [(labels.shape[axis] - 1) // max(scores.shape[axis + 1] - 1, 1) or 1 for axis in (1, 2)]
    targets = labels[:, :: steps[0], :: steps[1]]
    if targets.shape[1:] != scores.shape[2:]:
        raise ValueError(
            f"scores must stand over every 8th or 16th pixel; got {tuple(scores.shape[2:])} for labels of "
            f"{tuple(labels.shape[1:])}. A network with usage.align_corners=False is trained on its forward's `out`, or with True"
        )
    if total is None:
        total = _total(targets, ignore_index, weight)
    loss = F.cross_entropy(scores, targets, weight, ignore_index=ignore_index, reduction="sum")
    return loss / torch.where(total > 0, total, 1)


def _total(labels: Tensor, ignore_index: int, weight: Tensor | None) -> Tensor:
    valid = labels != ignore_index
    if weight is None:
        return valid.sum().float()
    return (weight.float()[torch.where(valid, labels, 0)] * valid).sum()
