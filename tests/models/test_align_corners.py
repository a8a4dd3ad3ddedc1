"""Networks that resize between the centres of pixels, as kazuto1011/deeplab-pytorch trains and runs its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_samples import CLASSES, narrow, small_model
from test_wrapped_weights import BLOCKS, under_names

from deeplab_crf.core.presets import get_preset
from deeplab_crf.models import (
    DeepLab,
    SegmentationPipeline,
    Usage,
    load_model,
    load_weights,
    save_weights,
    training_loss,
)
from deeplab_crf.models import variants as table
from deeplab_crf.models.weights import load as loading

RESNET = "v2-resnet101-aspp"


def network() -> DeepLab:
    torch.manual_seed(0)
    model = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES).eval()
    with torch.no_grad():
        for layer in model.classifier.branches:
            layer.weight.mul_(100)
    return model


def as_kazuto(model: DeepLab, images: Any) -> Any:
    """libs/models/msc.py and demo.py of the project: scales 1, 0.5 and 0.75, the maximum, and the image's size."""
    scores = [model.classifier(model.backbone(images))]
    for scale in (0.5, 0.75):
        smaller = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        found = model.classifier(model.backbone(smaller))
        scores.append(F.interpolate(found, size=scores[0].shape[2:], mode="bilinear", align_corners=False))
    fused = torch.stack(scores).amax(0)
    return F.interpolate(fused, size=images.shape[2:], mode="bilinear", align_corners=False)


def converted(state: dict[str, Any]) -> dict[str, Any]:
    """The order in which the project's convert.py writes what was a .caffemodel: BatchNorm's blobs, then Scale's."""
    order = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 2, "weight": 3, "bias": 4}
    modules = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in state))
    parts = {module: [name for name in state if name.rsplit(".", 1)[0] == module] for module in modules}
    return {
        name: state[name]
        for module in modules
        for name in sorted(parts[module], key=lambda name: order[name.rsplit(".", 1)[1]])
    }


@pytest.mark.parametrize(("height", "width"), [(97, 97), (80, 111), (33, 50)])
@pytest.mark.parametrize("fused", [False, True])
def test_its_networks_are_run_as_it_runs_them(height: int, width: int, fused: bool, tmp_path: Path) -> None:
    theirs = network()
    path = tmp_path / "deeplabv2_resnet101_msc-vocaug-20000.pth"
    torch.save(under_names(theirs, "kazuto1011"), path)
    ours = network()
    report = load_weights(ours, path)
    assert not ours.usage.align_corners
    assert "align_corners=False" in str(report)
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pipeline = SegmentationPipeline(ours, crf=None, fused=fused)
    with torch.no_grad():
        want = as_kazuto(theirs, pipeline.preprocess(image[None]))[0]
    (result,) = pipeline.predict(image)
    assert result.logits.shape == want.shape
    torch.testing.assert_close(result.logits, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    ours.usage = Usage()
    (aligned,) = pipeline.predict(image)
    assert not torch.allclose(aligned.logits, want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("prefix", "change", "corners", "multi_scale"),
    [
        ("base.", dict, False, True),
        ("base.", converted, True, True),  # convert.py's: a network of Caffe's
        ("scale.", dict, True, True),  # the project before February 2019
        ("", dict, False, False),
        ("base.", lambda state: dict(sorted(state.items())), False, True),  # as safetensors orders names
    ],
)
def test_which_of_its_files_resize_how(
    prefix: str, change: Any, corners: bool, multi_scale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {RESNET: narrow(RESNET, blocks=BLOCKS)}
    monkeypatch.setattr(loading, "VARIANTS", variants)
    monkeypatch.setattr(table, "VARIANTS", variants)
    path, own = tmp_path / "net.pth", tmp_path / "net.safetensors"
    torch.save(change(under_names(network(), "kazuto1011", old="base.", new=prefix)), path)
    model, report = load_model(path)
    assert (model.usage.align_corners, report.align_corners, model.multi_scale) == (corners, corners, multi_scale)
    save_weights(model, own)
    again, report = load_model(own)
    assert (again.usage.align_corners, report.align_corners, again.multi_scale) == (corners, corners, multi_scale)
    other = network()
    load_weights(other, own)
    assert other.usage.align_corners == corners


def test_deeplabv2s_has_to_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libs/models/__init__.py: DeepLabV2S_ResNet101_MSC is DeepLabV2's layers at the rates 3, 6, 9, 12."""
    variants = {name: narrow(name, blocks=BLOCKS) for name in (f"{RESNET}-s", RESNET)}
    monkeypatch.setattr(loading, "VARIANTS", variants)
    monkeypatch.setattr(table, "VARIANTS", variants)
    path, own = tmp_path / "net.pth", tmp_path / "net.safetensors"
    torch.save(under_names(network(), "kazuto1011"), path)
    assert load_model(path)[0].variant.name == RESNET
    model, _ = load_model(path, f"{RESNET}-s")
    assert [layer.dilation[0] for layer in model.classifier.branches] == [3, 6, 9, 12]
    save_weights(model, own)
    assert load_model(own)[0].variant.name == f"{RESNET}-s"


def test_weights_to_begin_with_change_no_resizing(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(under_names(network(), "kazuto1011"), path)
    model = network()
    load_weights(model, path, classifier=False)
    assert model.usage.align_corners


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9)])
def test_images_of_a_few_pixels(size: tuple[int, int]) -> None:
    model = small_model(RESNET)
    model.usage = Usage(align_corners=False)
    image = np.full((*size, 3), 100, np.uint8)
    (result,) = SegmentationPipeline(model, crf=None).predict(image)
    assert result.labels.shape == size
    assert bool(result.logits.isfinite().all())


def test_the_papers_loss_says_that_it_needs_aligned_corners() -> None:
    model = small_model(RESNET)
    images, labels = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.long)
    assert bool(training_loss(model.scores(images), labels).isfinite())
    model.usage = replace(model.usage, align_corners=False)
    with pytest.raises(ValueError, match=r"scores must stand over every 8th or 16th pixel.*align_corners=False"):
        training_loss(model.scores(images), labels)


def test_its_crf_is_a_preset() -> None:
    """configs/voc12.yaml: ITER_MAX 10, POS_W 3, POS_XY_STD 1, BI_W 4, BI_XY_STD 67, BI_RGB_STD 3; libs/utils/crf.py leaves
    pydensecrf's symmetric normalisation."""
    preset = get_preset("deeplab-v2-resnet101-pydensecrf")
    gaussian, bilateral = preset.kernels
    assert (preset.iterations, preset.normalization) == (10, "symmetric")
    assert (gaussian.weight, gaussian.sxy) == (3, 1)
    assert (bilateral.weight, bilateral.sxy, bilateral.srgb) == (4, 67, 3)
