"""From released weights of VGG-16 to an initialisation of a narrow variant: what the ``narrow`` command does."""

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
SCALES = (1.0, 1.5)  # at which photographs are seen


def narrow_weights(
    source: Path,
    model: str,
    photographs: SegmentationFolder,
    *,
    crops: int = 46,
    augmentation: Augmentation,
    seed: int = 0,
) -> tuple[DeepLab, list[float]]:
    """A network of the narrow variant ``model`` whose trunk says what that of ``source`` says, and how far it is off, layer by
    layer.

    source: weights with a whole VGG-16 trunk, see `load_weights`. photographs: of the kind that it will see; ``crops`` of them,
    evenly spread, are cut by ``augmentation``. The head is new. Raises ValueError for files and variants without such a trunk.
    """
    variant = get_variant(model)
    if not isinstance(variant.backbone, VGG16) or variant.backbone.channels >= FULL_CHANNELS:
        raise ValueError(f"model must be one with fewer channels than VGG-16 has; got {model!r}")
    full = _full_backbone(variant, source)
    chosen = np.linspace(0, len(photographs) - 1, min(crops, len(photographs))).round().astype(int)
    images = torch.stack([augmentation(photographs[int(i)], np.random.default_rng([seed, int(i)]))[0] for i in chosen])
    torch.manual_seed(seed)
    network = build_model(model, len(photographs.classes))
    assert isinstance(network.backbone, VGG16Backbone)
    errors = prune_backbone(full, network.backbone, images, seed)
    return network, errors


def _full_backbone(variant: Variant, source: Path) -> VGG16Backbone:
    """The trunk of ``variant`` at VGG-16's width, with the weights of ``source``."""
    assert isinstance(variant.backbone, VGG16)
    trunk = replace(variant.backbone, channels=FULL_CHANNELS)
    network = DeepLab(replace(variant, backbone=trunk, head=Head(kernel=1, rates=(1,))), 1)
    report = load_weights(network, source, classifier=False, strict=False)  # whatever head it has
    lacking = [name for name in report.missing if name.startswith("backbone.")]
    if lacking or report.misshapen:
        wrong = ", ".join((*report.misshapen, *lacking)[:3])
        raise ValueError(f"{source} must have a whole VGG-16 trunk; wrong or missing: {wrong}")
    assert isinstance(network.backbone, VGG16Backbone)
    return network.backbone
