"""DeepLab V1 and V2: the networks, their released weights, and the pipeline from an image to labels. Needs torch.

The table of variants (variants.py) and what weights say of their use (usage.py) are plain data and load without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplab_crf._lazy import load_name

_HOMES = {
    "Usage": "deeplab_crf.models.metadata",
    "VARIANTS": "deeplab_crf.models.variants",
    "Variant": "deeplab_crf.models.variants",
    "get_variant": "deeplab_crf.models.variants",
    "DeepLab": "deeplab_crf.models.deeplab",
    "Scores": "deeplab_crf.models.deeplab",
    "build_model": "deeplab_crf.models.deeplab",
    "deeplabv1_vgg16": "deeplab_crf.models.deeplab",
    "deeplabv2_compact": "deeplab_crf.models.deeplab",
    "deeplabv2_resnet101": "deeplab_crf.models.deeplab",
    "deeplabv2_resnet50": "deeplab_crf.models.deeplab",
    "deeplabv2_vgg16": "deeplab_crf.models.deeplab",
    "training_loss": "deeplab_crf.models.losses",
    "WeightsReport": "deeplab_crf.models.weights.load",
    "load_model": "deeplab_crf.models.weights.load",
    "load_weights": "deeplab_crf.models.weights.load",
    "save_weights": "deeplab_crf.models.weights.load",
    "Segmentation": "deeplab_crf.models.pipeline",
    "SegmentationPipeline": "deeplab_crf.models.pipeline",
}

if TYPE_CHECKING:
    from deeplab_crf.models.deeplab import (
        DeepLab,
        Scores,
        build_model,
        deeplabv1_vgg16,
        deeplabv2_compact,
        deeplabv2_resnet50,
        deeplabv2_resnet101,
        deeplabv2_vgg16,
    )
    from deeplab_crf.models.losses import training_loss
    from deeplab_crf.models.metadata import Usage
    from deeplab_crf.models.pipeline import Segmentation, SegmentationPipeline
    from deeplab_crf.models.variants import VARIANTS, Variant, get_variant
    from deeplab_crf.models.weights.load import WeightsReport, load_model, load_weights, save_weights

__all__ = [
    "VARIANTS",
    "DeepLab",
    "Scores",
    "Segmentation",
    "SegmentationPipeline",
    "Usage",
    "Variant",
    "WeightsReport",
    "build_model",
    "deeplabv1_vgg16",
    "deeplabv2_compact",
    "deeplabv2_resnet50",
    "deeplabv2_resnet101",
    "deeplabv2_vgg16",
    "get_variant",
    "load_model",
    "load_weights",
    "save_weights",
    "training_loss",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
