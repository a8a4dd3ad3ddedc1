"""Training through the layer works: from wrong numbers, 50 steps on 4 pictures improve other pictures. A gradient of the wrong sign
makes them worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deeplab_crf import Bilateral, Gaussian
from deeplab_crf.crf.dense_crf import DenseCRF

HEIGHT, WIDTH, LABELS = 36, 44, 4
STEPS = 50


def pictures(count: int, seed: int) -> tuple[Any, Any, Any]:
    """Logits (B, L, H, W), images (B, 3, H, W) in 0..255 and labels (B, H, W): discs of three colours on a ground, sensor noise,
    and scores as a bad network's: blurred, and wrong in places."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    palette = np.array([[90, 100, 80], [160, 90, 80], [80, 150, 100], [120, 110, 170]])
    labels = np.zeros((count, HEIGHT, WIDTH), np.int64)
    for picture in labels:
        for label in rng.permutation(3).repeat(2) + 1:
            y, x, radius = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH), rng.uniform(5, 11)
            picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = label
    images = np.clip(palette[labels] + rng.normal(0, 12, (*labels.shape, 3)), 0, 255)
    scores = np.eye(LABELS)[labels].transpose(0, 3, 1, 2)
    smooth = torch.nn.functional.avg_pool2d(torch.tensor(scores), 7, stride=1, padding=3)
    noise = torch.tensor(rng.normal(0, 1.2, scores.shape))
    return (4 * smooth + noise).float(), torch.tensor(images).permute(0, 3, 1, 2).float(), torch.tensor(labels)


def mean_iou(crf: DenseCRF, logits: Any, images: Any, labels: Any) -> float:
    """Over the labels, all pictures together."""
    with torch.no_grad():
        found = crf(logits, images).argmax(1)
    shares = []
    for label in range(LABELS):
        mine, true = found == label, labels == label
        shares.append(float((mine & true).sum() / (mine | true).sum()))
    return float(np.mean(shares))


def learn(crf: DenseCRF, rate: float = 0.08) -> None:
    """50 steps on 4 pictures."""
    logits, images, labels = pictures(4, seed=0)
    optimizer = torch.optim.Adam([each for each in crf.parameters() if each.requires_grad], rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(crf(logits, images), labels).backward()
        optimizer.step()


def wrong_layer(start: str) -> DenseCRF:
    """What is wrong at the start, and alone may be learned."""
    good = {"gaussian": Gaussian(1.5, 1.0), "bilateral": Bilateral(12.0, 25.0, 4.0)}
    kernels, options = dict(good), {"trainable": ("bandwidths",)}
    if start == "sxy":
        kernels["bilateral"] = Bilateral(1.0, 25.0, 4.0)
    if start == "srgb":
        kernels["bilateral"] = Bilateral(12.0, 150.0, 4.0)
    if start == "weights":
        kernels = {"gaussian": Gaussian(1.5, 0.1), "bilateral": Bilateral(12.0, 25.0, 0.1)}
        options = {"trainable": ("weights",)}
    if start == "compatibility":
        compat = -0.02 * np.eye(LABELS)
        kernels = {
            "gaussian": Gaussian(1.5, 1.0, compat=compat),
            "bilateral": Bilateral(12.0, 25.0, 4.0, compat=compat),
        }
        options = {"trainable": ("compatibility",), "compatibility": "matrix"}
    if start == "all":
        kernels = {"gaussian": Gaussian(4.0, 4.0), "bilateral": Bilateral(3.0, 120.0, 0.5)}
        options = {"trainable": ("weights", "bandwidths")}
    crf = DenseCRF(LABELS, tuple(kernels.values()), **options)
    for name, parameter in crf.named_parameters():
        if start in ("sxy", "srgb"):
            parameter.requires_grad_(name == f"log_{start}")
    return crf


@pytest.mark.parametrize(
    ("start", "gain"), [("weights", 0.2), ("compatibility", 0.2), ("sxy", 0.04), ("srgb", 0.2), ("all", 0.12)]
)
def test_learning_improves_other_pictures(start: str, gain: float) -> None:
    held_back = pictures(4, seed=1)
    crf = wrong_layer(start)
    before = mean_iou(crf, *held_back)
    learn(crf)
    after = mean_iou(crf, *held_back)
    assert after > before + gain
