"""DeepLab V1 and V2 in plain float64 NumPy, layer by layer as the papers' prototxts list them, under Caffe's names of layers.

Nothing here is taken from deeplab_crf: it is what the networks are tested against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Sequence[NDArray[Any]]]


def convolution(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, pad: int = 0, dilation: int = 1
) -> Array:
    """x (C, H, W), weight (O, C, k, k): sum over taps, each a shifted image times a matrix."""
    size = weight.shape[2]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((length + 2 * pad - dilation * (size - 1) - 1) // stride + 1 for length in x.shape[1:])
    out = np.zeros((weight.shape[0], rows, columns))
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            seen = padded[
                :, top : top + (rows - 1) * stride + 1 : stride, left : left + (columns - 1) * stride + 1 : stride
            ]
            out += np.tensordot(weight[:, :, i, j], seen, axes=1)
    return out if bias is None else out + bias[:, None, None]


def pooling(x: Array, kind: str, stride: int, pad: int = 1, size: int = 3) -> Array:
    """Caffe's Pooling: sizes rounded up, no window that starts in the padding behind; averages divide by the padded window."""
    lengths = []
    for length in x.shape[1:]:
        out = ceil((length + 2 * pad - size) / stride) + 1
        lengths.append(out - 1 if (out - 1) * stride >= length + pad else out)
    behind = [(out - 1) * stride + size - pad - length for out, length in zip(lengths, x.shape[1:], strict=True)]
    margins = ((0, 0), *((pad, max(margin, 0)) for margin in behind))
    windows = [
        (
            slice(None),
            *(slice(tap, tap + (out - 1) * stride + 1, stride) for tap, out in zip(taps, lengths, strict=True)),
        )
        for taps in product(range(size), repeat=2)
    ]
    if kind == "max":
        padded = np.pad(x, margins, constant_values=-np.inf)
        return np.maximum.reduce([padded[window] for window in windows])
    inside = np.pad(np.ones_like(x[:1]), ((0, 0), (pad, pad), (pad, pad)), constant_values=1)  # the padding counts,
    counted = np.pad(
        inside, ((0, 0), *((0, max(margin - pad, 0)) for margin in behind))
    )  # what lies behind it does not
    padded = np.pad(x, margins)
    return sum(padded[window] for window in windows) / sum(counted[window] for window in windows)  # type: ignore[return-value]


def interp(x: Array, rows: int, columns: int) -> Array:
    """Caffe's Interp: output i lies at i * (in - 1) / (out - 1) and is mixed from the two values around."""
    for axis, size in ((1, rows), (2, columns)):
        length = x.shape[axis]
        place = np.arange(size) * ((length - 1) / (size - 1) if size > 1 else 0.0)
        low = np.minimum(np.floor(place).astype(int), length - 1)
        share = (place - low).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        high = np.minimum(low + 1, length - 1)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


class SlowNetwork:
    """weights: Caffe's blobs by layer: [weight, bias], [mean, variance, factor], [gamma, beta]."""

    def __init__(self, weights: Weights) -> None:
        self.weights = {name: [np.asarray(blob, np.float64) for blob in blobs] for name, blobs in weights.items()}

    def conv(self, name: str, x: Array, **shape: int) -> Array:
        return convolution(x, *self.weights[name], **shape)

    # ---- VGG-16

    def vgg(self, image: Array, average_pool: bool) -> tuple[Array, dict[str, Array]]:
        """pool5 (or pool5a), and the image and pool1..pool4 by name."""
        x, seen = image, {"data": image}
        for stage, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for i in range(1, convolutions + 1):
                dilation = 2 if stage == 5 else 1
                x = relu(self.conv(f"conv{stage}_{i}", x, pad=dilation, dilation=dilation))
            x = pooling(x, "max", stride=2 if stage <= 3 else 1)
            if stage < 5:
                seen[f"pool{stage}"] = x
        return (pooling(x, "average", stride=1) if average_pool else x), seen

    def vgg_head(self, x: Array, kernel: int, rate: int, pad: int, suffix: str = "") -> Array:
        assert self.weights[f"fc6{suffix}"][0].shape[2] == kernel
        x = relu(self.conv(f"fc6{suffix}", x, pad=pad, dilation=rate))
        x = relu(self.conv(f"fc7{suffix}", x))
        return self.conv(f"fc8_voc12{suffix}", x)

    def vgg_aspp(self, x: Array, rates: Sequence[int]) -> Array:
        return sum(  # type: ignore[return-value]
            self.vgg_head(x, kernel=3, rate=rate, pad=rate, suffix=f"_{i}") for i, rate in enumerate(rates, start=1)
        )

    def msc(self, scores: Array, seen: Mapping[str, Array], training: bool) -> Array:
        """V1's multi-scale features, as they train (stride 8) and as they are tested (stride 1)."""
        size = scores.shape[1:] if training else seen["data"].shape[1:]
        total = scores if training else interp(scores, *size)
        for name, stride in zip(("data", "pool1", "pool2", "pool3", "pool4"), (8, 4, 2, 1, 1), strict=True):
            x = relu(self.conv(f"{name}_conv", seen[name], pad=1, stride=stride if training else 1))
            x = self.conv(f"{name}_ms", relu(self.conv(f"{name}_fc", x)))
            total = total + (x if training else interp(x, *size))
        return total

    # ---- ResNet

    def norm(self, suffix: str, x: Array, first: bool = False) -> Array:
        bn, scale = ("bn_", "scale_") if first else ("bn", "scale")
        mean, variance, factor = self.weights[bn + suffix]
        gamma, beta = self.weights[scale + suffix]
        multiplier = 0.0 if factor.item() == 0 else 1 / factor.item()
        x = (x - (mean * multiplier)[:, None, None]) / np.sqrt(variance * multiplier + 1e-5)[:, None, None]
        return x * gamma[:, None, None] + beta[:, None, None]

    def resnet(self, image: Array, blocks: Sequence[int]) -> Array:
        x = relu(self.norm("conv1", self.conv("conv1", image, stride=2, pad=3), first=True))
        x = pooling(x, "max", stride=2)
        for stage, count in zip((2, 3, 4, 5), blocks, strict=True):
            for name in block_names(stage, count):
                x = self.block(x, name, stride=2 if name == "3a" else 1, dilation={4: 2, 5: 4}.get(stage, 1))
        return x

    def block(self, x: Array, name: str, stride: int, dilation: int) -> Array:
        shortcut = x
        if name.endswith("a"):
            shortcut = self.norm(f"{name}_branch1", self.conv(f"res{name}_branch1", x, stride=stride))
        y = relu(self.norm(f"{name}_branch2a", self.conv(f"res{name}_branch2a", x, stride=stride)))
        y = relu(self.norm(f"{name}_branch2b", self.conv(f"res{name}_branch2b", y, pad=dilation, dilation=dilation)))
        return relu(shortcut + self.norm(f"{name}_branch2c", self.conv(f"res{name}_branch2c", y)))

    def resnet_scores(self, image: Array, blocks: Sequence[int], rates: Sequence[int]) -> Array:
        x = self.resnet(image, blocks)
        names = ["fc1_voc12"] if len(rates) == 1 else [f"fc1_voc12_c{k}" for k in range(len(rates))]
        return sum(  # type: ignore[return-value]
            self.conv(name, x, pad=rate, dilation=rate) for name, rate in zip(names, rates, strict=True)
        )


def block_names(stage: int, count: int) -> list[str]:
    """2a, 2b, 2c; with more than four blocks 4a, 4b1, 4b2, ... (3a, 3b1, 3b2, 3b3 in ResNet-101)."""
    letters = stage in (2, 5) or count <= 2
    return [f"{stage}a"] + [f"{stage}{chr(ord('a') + i)}" if letters else f"{stage}b{i}" for i in range(1, count)]


# ---- Weights to run it with: narrow, random, and so scaled that values stay near 1.


def vgg_weights(
    channels: int, head: int, kernel: int, branches: int = 1, msc: int = 0, classes: int = 3, seed: int = 0
) -> dict[str, list[NDArray[np.float32]]]:
    """Caffe's blobs of a VGG net whose first stage has so many channels."""
    maker = _Maker(seed)
    inputs = 3
    for stage, (convolutions, multiple) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)), start=1):
        for i in range(1, convolutions + 1):
            maker.conv(f"conv{stage}_{i}", multiple * channels, inputs, 3)
            inputs = multiple * channels
    for i in range(branches):
        suffix = f"_{i + 1}" if branches > 1 else ""
        maker.conv(f"fc6{suffix}", head, inputs, kernel)
        maker.conv(f"fc7{suffix}", head, head, 1)
        maker.conv(f"fc8_voc12{suffix}", classes, head, 1)
    if msc:
        for name, multiple in (("data", 0), ("pool1", 1), ("pool2", 2), ("pool3", 4), ("pool4", 8)):
            maker.conv(f"{name}_conv", msc, multiple * channels or 3, 3)
            maker.conv(f"{name}_fc", msc, msc, 1)
            maker.conv(f"{name}_ms", classes, msc, 1)
    return maker.blobs


def resnet_weights(
    channels: int, blocks: Sequence[int], branches: int = 4, classes: int = 3, seed: int = 0
) -> dict[str, list[NDArray[np.float32]]]:
    """Caffe's blobs of a residual net whose conv1 has so many channels; BatchNorm scaled by factors, one of them 1."""
    maker = _Maker(seed)
    maker.conv("conv1", channels, 3, 7, bias=False)
    maker.norm("_conv1", channels)
    inputs = channels
    for stage, count in zip((2, 3, 4, 5), blocks, strict=True):
        width = channels * 2 ** (stage - 2)
        for name in block_names(stage, count):
            if name.endswith("a"):
                maker.conv(f"res{name}_branch1", 4 * width, inputs, 1, bias=False)
                maker.norm(f"{name}_branch1", 4 * width)
            for part, outputs, size in (("2a", width, 1), ("2b", width, 3), ("2c", 4 * width, 1)):
                source = {"2a": inputs, "2b": width, "2c": width}[part]
                maker.conv(f"res{name}_branch{part}", outputs, source, size, bias=False)
                maker.norm(f"{name}_branch{part}", outputs)
            inputs = 4 * width
    names = ["fc1_voc12"] if branches == 1 else [f"fc1_voc12_c{k}" for k in range(branches)]
    for name in names:
        maker.conv(name, classes, inputs, 3)
    return maker.blobs


class _Maker:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.blobs: dict[str, list[NDArray[np.float32]]] = {}

    def conv(self, name: str, outputs: int, inputs: int, size: int, bias: bool = True) -> None:
        weight = self.rng.normal(0, (2 / (inputs * size * size)) ** 0.5, (outputs, inputs, size, size))
        self.blobs[name] = [weight.astype(np.float32)]
        if bias:
            self.blobs[name].append(self.rng.normal(0, 0.1, outputs).astype(np.float32))

    def norm(self, suffix: str, channels: int) -> None:
        factor = self.rng.uniform(0.5, 1000.0) if len(self.blobs) % 3 else 1.0
        mean, variance = self.rng.normal(0, 0.3, channels), self.rng.uniform(0.5, 1.5, channels)
        gamma, beta = self.rng.uniform(0.3, 1.0, channels), self.rng.normal(0, 0.2, channels)
        self.blobs[f"bn{suffix}"] = [np.float32(mean * factor), np.float32(variance * factor), np.float32([factor])]
        self.blobs[f"scale{suffix}"] = [gamma.astype(np.float32), beta.astype(np.float32)]
