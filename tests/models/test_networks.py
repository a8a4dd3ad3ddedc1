"""The networks against the papers' numbers, and layer by layer against slow NumPy."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import caffe_files
import numpy as np
import pytest
import torch
from model_samples import CLASSES, narrow, preprocessed, small_model
from slow_network import SlowNetwork, interp, resnet_weights, vgg_weights

from deeplab_crf import models
from deeplab_crf.models import VARIANTS, DeepLab, build_model, load_weights, training_loss
from deeplab_crf.models.interp import image_scores, padded_size, resize, scaled_size
from deeplab_crf.models.interp import interp as torch_interp

# Tables 1 of V1 and V2: millions of parameters. MSc: 5 branches more; ResNet-101: 42.4 without its classifier.
PARAMETERS = {
    "v1-vgg16-7x7": 134.3,
    "v1-vgg16-vgg16": 65.1,
    "v1-vgg16-4x4": 65.1,
    "v1-vgg16-largefov": 20.5,
    "v2-vgg16-largefov": 20.5,
    "v2-vgg16-aspp-s": 37.9,
    "v2-vgg16-aspp-l": 37.9,
}
BLOCKS = (1, 2, 3, 1)


@cache
def on_meta(name: str, **options: Any) -> DeepLab:
    """The whole network without its numbers."""
    with torch.device("meta"):
        return build_model(name, **options)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_papers(name: str) -> None:
    assert round(count(on_meta(name)) / 1e6, 1) == PARAMETERS[name]


def test_resnet101_has_its_layers() -> None:
    model = on_meta("v2-resnet101-aspp")
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count("Conv2d") == 108
    assert kinds.count("BatchNorm2d") == 104
    assert count(model.backbone) == 42_500_160  # torchvision's resnet101 without fc: 44_549_160 - 2_049_000
    assert count(model.classifier) == 4 * (2048 * 9 + 1) * 21


def test_multi_scale_features_add_their_branches() -> None:
    inputs = 3 + 64 + 128 + 256 + 512
    branches = inputs * 9 * 128 + 5 * 128 + 5 * (128 * 128 + 128) + 5 * (128 * 21 + 21)
    assert count(on_meta("v1-vgg16-msc-largefov")) == count(on_meta("v1-vgg16-largefov")) + branches
    assert count(on_meta("v1-vgg16-msc")) == count(on_meta("v1-vgg16-vgg16")) + branches


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_the_papers(name: str) -> None:
    model = on_meta(name)
    for size, scores in ((321, 41), (513, 65)):
        images = torch.empty(1, 3, size, size, device="meta")
        if model.msc is not None:
            trained = model.train().scores(images)
            assert trained.fused.shape == (1, 21, scores, scores)
            scores = size
        tested = model.eval().scores(images)
        assert tested.fused.shape == (1, 21, scores, scores)
        assert tested.size == (size, size)
    assert model(images)["out"].shape == (1, 21, 513, 513)


def test_three_scales_have_the_papers_sizes() -> None:
    assert [scaled_size(321, scale) for scale in (0.75, 0.5)] == [241, 161]
    model = on_meta("v2-resnet101-aspp")
    for size, own in ((321, 41), (241, 31), (161, 21)):
        image = torch.empty(1, 3, size, size, device="meta")
        assert model.backbone(image).shape[-2:] == (own, own)
    scores = model.scores(torch.empty(2, 3, 321, 321, device="meta"))
    assert [tuple(each.shape) for each in scores.scales] == [(2, 21, 41, 41), (2, 21, 41, 41), (2, 21, 21, 21)]
    assert list(model(torch.empty(1, 3, 321, 321, device="meta"))) == ["out", "aux"]
    assert list(on_meta("v2-resnet101-aspp", multi_scale=False)(torch.empty(1, 3, 65, 65, device="meta"))) == ["out"]


def test_every_family_has_its_function() -> None:
    with torch.device("meta"):
        built = [
            *(
                models.deeplabv1_vgg16(variant)
                for variant in ("largefov", "7x7", "4x4", "vgg16", "msc", "msc-largefov")
            ),
            *(models.deeplabv2_vgg16(variant) for variant in ("largefov", "aspp-s", "aspp-l")),
            *(models.build_model(name) for name in ("v1-narrow-largefov", "v2-narrow-aspp-s", "v2-narrow-aspp-l")),
            *(models.deeplabv2_resnet101(variant) for variant in ("largefov", "aspp")),
            *(models.deeplabv2_resnet50(variant, num_classes=7) for variant in ("largefov", "aspp")),
            *(models.deeplabv2_compact(variant) for variant in ("largefov", "aspp")),
            models.deeplabv2_resnet101("aspp-s"),
        ]
    assert [model.variant.name for model in built] == list(VARIANTS)
    assert built[-4].num_classes == 7


# ---------------------------------------------------------------- against slow NumPy; long images, so that every rate meets pixels


def loaded(variant: Any, weights: dict[str, Any], tmp_path: Path, multi_scale: bool = False) -> DeepLab:
    """The narrow network with weights that were given in Caffe's names, through a file."""
    model = DeepLab(variant, CLASSES, multi_scale)
    style = caffe_files.V1_FILE if variant.name.startswith("v1") else caffe_files.V2_FILE
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffe_files.net(weights, style))
    load_weights(model, path)
    return model.eval().double()


def check(got: Any, want: Any) -> None:
    np.testing.assert_allclose(
        got.detach().numpy(), want, rtol=1e-6, atol=1e-6
    )  # weights were rounded to float32, once


VGG_CASES = {  # kernel, rate and pad of fc6
    "v1-vgg16-largefov": (3, 12, 12),
    "v1-vgg16-7x7": (7, 4, 12),
    "v1-vgg16-4x4": (4, 8, 12),
    "v1-vgg16-vgg16": (4, 4, 6),
    "v2-vgg16-largefov": (3, 12, 12),
}


@pytest.mark.parametrize("name", VGG_CASES)
def test_vgg_is_the_slow_network(name: str, tmp_path: Path) -> None:
    kernel, rate, pad = VGG_CASES[name]
    weights = vgg_weights(2, 5, kernel)
    slow, image = SlowNetwork(weights), preprocessed(33, 225)
    features, _ = slow.vgg(image, average_pool=name == "v1-vgg16-largefov")
    want = slow.vgg_head(features, kernel, rate, pad)
    model = loaded(narrow(name), weights, tmp_path)
    images = torch.from_numpy(image)[None].double()
    check(model.scores(images).fused[0], want)
    check(model(images)["out"][0], interp(want, 33, 225))


@pytest.mark.parametrize("name", ["v1-vgg16-msc", "v1-vgg16-msc-largefov"])
def test_multi_scale_features_are_the_slow_networks(name: str, tmp_path: Path) -> None:
    kernel, rate, pad = (3, 12, 12) if "largefov" in name else (4, 4, 6)
    weights = vgg_weights(2, 5, kernel, msc=5)
    slow, image = SlowNetwork(weights), preprocessed(17, 129)
    features, seen = slow.vgg(image, average_pool="largefov" in name)
    top = slow.vgg_head(features, kernel, rate, pad)
    model = loaded(narrow(name), weights, tmp_path)
    images = torch.from_numpy(image)[None].double()
    check(model(images)["out"][0], slow.msc(top, seen, training=False))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    check(model.scores(images).fused[0], slow.msc(top, seen, training=True))
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"msc"}


@pytest.mark.parametrize(("name", "rates"), [("v2-vgg16-aspp-s", (2, 4, 8, 12)), ("v2-vgg16-aspp-l", (6, 12, 18, 24))])
def test_vgg_aspp_is_the_slow_networks(name: str, rates: tuple[int, ...], tmp_path: Path) -> None:
    weights = vgg_weights(2, 5, 3, branches=4)
    slow, image = SlowNetwork(weights), preprocessed(17, 225)
    want = slow.vgg_aspp(slow.vgg(image, average_pool=False)[0], rates)
    check(loaded(narrow(name), weights, tmp_path).scores(torch.from_numpy(image)[None].double()).fused[0], want)


@pytest.mark.parametrize(("name", "rates"), [("v2-resnet101-largefov", (12,)), ("v2-resnet101-aspp", (6, 12, 18, 24))])
def test_resnet_at_three_scales_is_the_slow_network(name: str, rates: tuple[int, ...], tmp_path: Path) -> None:
    weights = resnet_weights(4, BLOCKS, branches=len(rates))
    slow, image = SlowNetwork(weights), preprocessed(33, 225)
    per_scale = [
        slow.resnet_scores(interp(image.astype(np.float64), *size), BLOCKS, rates)
        for size in ((33, 225), (25, 169), (17, 113))
    ]
    enlarged = [interp(each, 5, 29) for each in per_scale]
    model = loaded(narrow(name, blocks=BLOCKS), weights, tmp_path, multi_scale=True)
    images = torch.from_numpy(image)[None].double()
    scores = model.scores(images)
    check(scores.scales[0][0], per_scale[0])
    check(scores.scales[1][0], enlarged[1])
    check(scores.scales[2][0], per_scale[2])
    check(scores.fused[0], np.maximum(np.maximum(enlarged[0], enlarged[1]), enlarged[2]))
    out = model(images)
    check(out["out"][0], interp(scores.fused[0].detach().numpy(), 33, 225))
    check(out["aux"][0], interp(per_scale[0], 33, 225))


@pytest.mark.parametrize(
    ("size", "out"), [((5, 7), (9, 13)), ((1, 4), (1, 8)), ((1, 1), (3, 2)), ((6, 5), (3, 4)), ((3, 3), (1, 1))]
)
def test_interp_is_its_formula(size: tuple[int, int], out: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=(2, *size))
    check(torch_interp(torch.from_numpy(values)[None], out)[0], interp(values, *out))


@pytest.mark.parametrize(("rows", "out"), [(6, 3), (7, 4), (3, 8)])
def test_pictures_of_one_column_are_resized_as_wider_ones(rows: int, out: int) -> None:
    values = torch.rand(1, 2, rows, 1)
    want = resize(values.repeat(1, 1, 1, 5), (out, 5))[..., :1]
    torch.testing.assert_close(resize(values, (out, 1)), want)
    torch.testing.assert_close(resize(values.mT.contiguous(), (1, out)), want.mT)


@pytest.mark.parametrize("seen", [(37, 49), (33, 44), (3, 49), (37, 2)])
@pytest.mark.parametrize("image", [(24, 31), (80, 90), (5, 70), (37, 49), (1, 1)])
def test_scores_of_an_image_are_enlarged_cut_and_resized(seen: tuple[int, int], image: tuple[int, int]) -> None:
    scores = torch.randn(2, 3, 6, 8)
    want = resize(torch_interp(scores, (41, 57))[..., : seen[0], : seen[1]], image)
    with torch.inference_mode():
        got = image_scores(scores, (41, 57), seen, image)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    image_scores(scores.requires_grad_(), (41, 57), seen, image).sum().backward()


# ---------------------------------------------------------------- sizes, modes, losses


@pytest.mark.parametrize("name", ["v1-vgg16-msc-largefov", "v2-resnet101-aspp"])
def test_classifiers_start_as_in_the_papers(name: str) -> None:
    """N(0, 0.01), no bias."""
    layers = [small_model(name, classes=200).get_submodule(layer) for layer in small_model(name).score_layers()]
    assert len(layers) == (6 if "msc" in name else 4)
    assert np.std(np.concatenate([layer.weight.detach().numpy().ravel() for layer in layers])) == pytest.approx(
        0.01, rel=0.1
    )
    assert not any(layer.bias.any() for layer in layers)


@pytest.mark.parametrize("name", ["v1-vgg16-largefov", "v1-vgg16-msc", "v2-resnet101-aspp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 34), (70, 64)])
def test_any_size_comes_back(name: str, size: tuple[int, int]) -> None:
    model = small_model(name)
    with torch.no_grad():
        out = model(torch.from_numpy(preprocessed(*size))[None])["out"]
    assert out.shape == (1, CLASSES, *size)
    assert bool(torch.isfinite(out).all())


def test_padding_is_at_the_bottom_and_right() -> None:
    """A size between is what the padded image gives, cut off at the bottom and right."""
    model = small_model("v2-resnet101-aspp")
    image = torch.from_numpy(preprocessed(50, 60))[None]
    padded = torch.nn.functional.pad(image, (0, 5, 0, 15))
    assert (padded_size(50, 32), padded_size(60, 32), padded_size(65, 32)) == (65, 65, 65)
    with torch.no_grad():
        torch.testing.assert_close(model(image)["out"], model(padded)["out"][..., :50, :60])


def test_frozen_batch_norm_stays_frozen() -> None:
    model = small_model("v2-resnet101-aspp", multi_scale=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.from_numpy(preprocessed(65, 65))[None])["out"].mean().backward()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(module.weight.grad is None and not module.training for module in norms)
    assert model.backbone.conv1.weight.grad is not None


def test_the_compact_net_learns_its_batch_norm() -> None:
    model = small_model("v2-compact-aspp").train()
    model(torch.from_numpy(preprocessed(65, 65))[None])["out"].mean().backward()
    assert bool((model.backbone.bn1.running_mean != 0).all())
    assert model.backbone.bn1.weight.grad is not None


def reference_loss(scores: Any, labels: Any) -> float:
    """Mean cross-entropy over the labels that are not 255."""
    values = scores.detach().double().numpy()
    log_q = (
        values
        - np.log(np.exp(values - values.max(1, keepdims=True)).sum(1, keepdims=True))
        - values.max(1, keepdims=True)
    )
    picked = np.take_along_axis(log_q, np.where(labels == 255, 0, labels)[:, None], 1)[:, 0]
    return float(-picked[labels != 255].mean())


def test_four_losses_of_multi_scale_training() -> None:
    model = small_model("v2-resnet101-aspp")
    labels = np.random.default_rng(0).integers(0, CLASSES, (2, 60, 65))
    labels[:, ::3, ::5] = 255
    images = torch.from_numpy(np.stack([preprocessed(60, 65, seed) for seed in (0, 1)]))
    with torch.no_grad():
        scores = model.scores(images)
    padded = np.pad(labels, ((0, 0), (0, 5), (0, 0)), constant_values=255)
    eighth, sixteenth = padded[:, ::8, ::8], padded[:, ::16, ::16]
    want = sum(reference_loss(each, eighth) for each in (scores.fused, scores.scales[0], scores.scales[1]))
    want += reference_loss(scores.scales[2], sixteenth)
    assert scores.scales[2].shape[-2:] == (5, 5)
    assert training_loss(scores, torch.from_numpy(labels)).item() == pytest.approx(want, rel=1e-5)


def test_loss_of_one_scale_and_of_nothing() -> None:
    model = small_model("v1-vgg16-largefov")
    scores = model.scores(torch.from_numpy(preprocessed(33, 41))[None])
    labels = np.random.default_rng(0).integers(0, CLASSES, (1, 33, 41))
    want = reference_loss(scores.fused, labels[:, ::8, ::8])
    assert training_loss(scores, torch.from_numpy(labels)).item() == pytest.approx(want, rel=1e-5)
    nothing = training_loss(scores, torch.full((1, 33, 41), 255))
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1, 33, 41), "labels must be integers"),
        (torch.zeros(2, 33, 41, dtype=torch.long), r"labels must be integers of shape \(1, H, W\)"),
        (torch.zeros(1, 50, 41, dtype=torch.long), "labels must have the size of the images"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, message: str) -> None:
    scores = small_model("v1-vgg16-largefov").scores(torch.from_numpy(preprocessed(33, 41))[None])
    with pytest.raises(ValueError, match=message):
        training_loss(scores, labels)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="model must be one of v1-vgg16-largefov"):
        build_model("v3")
    with pytest.raises(ValueError, match=r"model must be one of .*; got 'v1-vgg16-aspp'"):
        models.deeplabv1_vgg16("aspp")
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 1; got 0"):
        DeepLab(narrow("v2-compact-aspp"), 0)
    with pytest.raises(ValueError, match="multi_scale must be False for v1-vgg16-msc"):
        DeepLab(narrow("v1-vgg16-msc"), 3, multi_scale=True)
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        small_model()(torch.zeros(3, 9, 9))
