"""The real torchvision's networks: their state dicts are read, and `fuse` computes what they do.

torchvision imports only beside the build of torch that it was made for; .github/workflows/tests.yml has a job with both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

try:
    import torchvision
except (ImportError, RuntimeError) as error:  # RuntimeError: its operators do not fit this torch
    pytest.skip(f"torchvision is not installed for this torch: {error}", allow_module_level=True)

from deeplab_crf.models import build_model, load_weights
from deeplab_crf.nn import fuse

CLASSIFIERS = (
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "mobilenet_v2",
    "vgg16_bn",
    "regnet_y_400mf",
    "convnext_tiny",
)
SEGMENTERS = ("deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")


def trained(network: torch.nn.Module) -> torch.nn.Module:
    """``network`` in evaluation mode, with batch norms whose statistics are not those of a new one."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def assert_fused_agrees(network: torch.nn.Module, read: Any) -> None:
    image = torch.rand(1, 3, 97, 65, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = read(network(image)), read(fuse(network)(image))
    assert float((got - want).norm() / want.norm()) < 1e-4


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fused_classifiers_agree(name: str) -> None:
    assert_fused_agrees(trained(torchvision.models.get_model(name, weights=None)), lambda out: out)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_fused_segmenters_agree(name: str) -> None:
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    assert_fused_agrees(trained(network), lambda out: out["out"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("resnet50", "v2-resnet50-aspp"), ("resnet101", "v2-resnet101-aspp"), ("vgg16", "v1-vgg16-largefov")],
)
def test_backbones_are_read(theirs: str, ours: str, tmp_path: Path) -> None:
    network = trained(torchvision.models.get_model(theirs, weights=None))
    path = tmp_path / f"{theirs}.pth"
    torch.save(network.state_dict(), path)
    model = build_model(ours, num_classes=4)
    report = load_weights(model, path, input_convention="rgb-1")
    assert report.format == "torchvision"
    assert {name.split(".")[0] for name in report.missing} == {"classifier"}
    deep = "layer4.2.conv2.weight" if "resnet" in theirs else "features.28.weight"
    assert torch.equal(model.backbone.state_dict()[deep], network.state_dict()[deep])


def test_the_backbone_of_a_deeplabv3_is_read(tmp_path: Path) -> None:
    network = trained(torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None))
    path = tmp_path / "deeplabv3.pth"
    torch.save(network.state_dict(), path)
    model = build_model("v2-resnet50-aspp", num_classes=4)
    load_weights(model, path, input_convention="rgb-1", strict=False)
    key = "layer4.2.conv2.weight"
    assert torch.equal(model.backbone.state_dict()[key], network.backbone.state_dict()[key])
