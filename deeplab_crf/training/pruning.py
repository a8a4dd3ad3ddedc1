"""Pruned variants of VGG-16, initialised from released weights of the whole network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.data.transforms import Augmentation
from deeplab_crf.models.deeplab import DeepLab, build_model
from deeplab_crf.models.pruning import prune_backbone
from deeplab_crf.models.variants import VGG16, Head, Variant, get_variant
from deeplab_crf.models.vgg import VGG16Backbone
from deeplab_crf.models.weights.load import load_weights

FULL_CHANNELS = VGG16().channels
SCALES = (1.0, 1.5)  # at which images are seen


def prune_weights(
    source: Path,
    model: str,
    dataset: SegmentationFolder,
    *,
    crops: int = 46,
    augmentation: Augmentation,
    seed: int = 0,
) -> tuple[DeepLab, list[float]]:
    """Make a network whose pruned backbone is fitted to a whole VGG-16 backbone.

    Args:
        source: Weights with a whole VGG-16 backbone; see `load_weights`.
        model: A variant with fewer channels than VGG-16.
        dataset: Images of the kind that the network will see.
        crops: The number of images to use, evenly spaced.
        augmentation: Cuts the crops.
        seed: Decides the crops and the weights of the head, which is new.

    Returns:
        The network, and the share of variance that each layer loses.

    Raises:
        ValueError: The file or the variant has no such backbone.
    """
    variant = get_variant(model)
    if not isinstance(variant.backbone, VGG16) or variant.backbone.channels >= FULL_CHANNELS:
        raise ValueError(f"model must be one with fewer channels than VGG-16 has; got {model!r}")
    full = _full_backbone(variant, source)
    chosen = np.linspace(0, len(dataset) - 1, min(crops, len(dataset))).round().astype(int)
    images = torch.stack([augmentation(dataset[int(i)], np.random.default_rng([seed, int(i)]))[0] for i in chosen])
    torch.manual_seed(seed)
    network = build_model(model, len(dataset.classes))
    assert isinstance(network.backbone, VGG16Backbone)
    errors = prune_backbone(full, network.backbone, images, seed)
    return network, errors


def _full_backbone(variant: Variant, source: Path) -> VGG16Backbone:
    """Load the backbone of ``variant`` at the width of VGG-16 from ``source``."""
    assert isinstance(variant.backbone, VGG16)
    backbone = replace(variant.backbone, channels=FULL_CHANNELS)
    network = DeepLab(replace(variant, backbone=backbone, head=Head(kernel=1, rates=(1,))), 1)
    report = load_weights(network, source, classifier=False, strict=False)  # whatever head it has
    lacking = [name for name in report.missing if name.startswith("backbone.")]
    if lacking or report.misshapen:
        wrong = ", ".join((*report.misshapen, *lacking)[:3])
        raise ValueError(f"{source} must have a whole VGG-16 backbone; wrong or missing: {wrong}")
    assert isinstance(network.backbone, VGG16Backbone)
    return network.backbone
