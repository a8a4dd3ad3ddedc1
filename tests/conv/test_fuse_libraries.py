"""deeplab_crf.nn.fuse on the networks of segmentation_models_pytorch and timm, where these are installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from conv_samples import error
from torch import Tensor, nn

from deeplab_crf.nn import fuse

# All of segmentation_models_pytorch 0.6.0 that take any encoder; DPT takes vision transformers.
ARCHITECTURES = [
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer",
]  # fmt: skip
BACKBONES = [
    "resnet18", "resnet50d", "seresnet50", "res2net50_26w_4s", "densenet121", "efficientnet_b0", "mobilenetv3_small_100",
    "regnety_004", "convnext_atto", "vgg11_bn", "hrnet_w18_small", "dla34", "inception_v3", "ghostnet_100", "nf_regnet_b0",
]  # fmt: skip


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as reason:  # a torchvision for another torch raises RuntimeError
        pytest.skip(f"{name} cannot be imported: {reason}")


def _compare(model: nn.Module, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 160, 128)
    with torch.no_grad():
        want = model.eval()(x)
        fused = fuse(model, x if options.get("example") else None)
        got = fused(x)
    for a, b in zip(*[[result] if isinstance(result, Tensor) else result for result in (want, got)], strict=True):
        assert error(b, a) < 1e-4
    assert fused.fusion_report.replaced
    return fused


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_segmentation_models_pytorch(name: str) -> None:
    models = _import("segmentation_models_pytorch")
    fused = _compare(getattr(models, name)(encoder_name="resnet18", encoder_weights=None, classes=3))
    assert len(fused.fusion_report.folded) >= 14


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_timm(name: str, features_only: bool) -> None:
    _compare(_import("timm").create_model(name, pretrained=False, features_only=features_only), example=features_only)
