"""The loss of a batch: weighted, and cut into parts that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_samples import CLASSES, preprocessed, small_model

from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.models.losses import loss_totals, training_loss
from deeplab_crf.runtime.processes import World
from deeplab_crf.training.batch_loss import BatchLoss
from deeplab_crf.training.class_weights import balanced, class_weights

WEIGHT = torch.tensor([0.5, 2.0, 0.1])


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and labels of which the first image's are nearly all void."""
    images = torch.from_numpy(np.stack([preprocessed(33, 65, seed) for seed in range(count)]))
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, (count, 33, 65)))
    labels[0, 1:] = 255
    return images, labels


def test_weights_make_the_means_weighted() -> None:
    """torch's own weighted mean, for each of the four losses."""
    images, labels = batch()
    with torch.no_grad():
        scores = small_model("v2-resnet50-largefov").scores(images)
    eighth, sixteenth = labels[:, ::8, ::8], labels[:, ::16, ::16]
    pairs = [(scores.fused, eighth), *zip(scores.scales, (eighth, eighth, sixteenth), strict=True)]
    for weight in (None, WEIGHT):
        want = sum(torch.nn.functional.cross_entropy(*pair, weight, ignore_index=255) for pair in pairs)
        torch.testing.assert_close(training_loss(scores, labels, weight=weight), want)
    with pytest.raises(ValueError, match=r"weight must have shape \(3,\), a number a class; got \(2,\)"):
        training_loss(scores, labels, weight=WEIGHT[:2])


def test_totals_count_what_is_not_void() -> None:
    _, labels = batch()
    assert loss_totals(labels).tolist() == [float((labels[:, ::s, ::s] != 255).sum()) for s in (8, 16)]
    assert loss_totals(torch.full((1, 9, 9), 255), weight=WEIGHT).tolist() == [0, 0]


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_to_the_batch(parts: int, weight: torch.Tensor | None) -> None:
    """Loss and gradients, though the parts have different numbers of pixels."""
    images, labels = batch()
    whole = small_model("v2-resnet50-largefov").train()
    loss = training_loss(whole.scores(images), labels, weight=weight)
    loss.backward()
    cut = small_model("v2-resnet50-largefov").train()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    pieces = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
    value = BatchLoss(cut, "off", World(0, 1, torch.device("cpu")), weight).backward(pieces, scaler)
    torch.testing.assert_close(value, loss.detach())
    for (name, want), got in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert (want.grad is None) == (got.grad is None), name
        if want.grad is not None:
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5)


def test_balanced_weights() -> None:
    """Proportional to 1 / sqrt(frequency), mean 1 over the classes that are there."""
    weights = balanced(np.array([900, 100, 0, 25]))
    np.testing.assert_allclose(weights[[0, 1, 3]] / weights[0], [1, 3, 6])
    assert weights[[0, 1, 3]].mean() == pytest.approx(1)
    assert weights[2] == 1


def test_class_weights_count_the_labels_once(data: Path) -> None:
    dataset = open_dataset("folder", data, "train")
    assert class_weights("none", dataset) is None
    pixels = np.zeros(3, np.int64)
    for i in range(len(dataset)):
        labels = dataset[i].labels
        pixels += [int((labels == k).sum()) for k in range(3)]
    np.testing.assert_allclose(class_weights("balanced", dataset), balanced(pixels), rtol=1e-6)
