"""Every variant of DeepLab V1 and V2, each described here and nowhere else: plain data, no torch.

A new variant is a few lines in `_papers`. V1: Chen et al., ICLR 2015 (arXiv 1412.7062). V2: Chen et al., TPAMI 2017 (arXiv
1606.00915).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class VGG16:
    """The backbone of V1 and of V2's VGG nets: output stride 8, conv5 dilated by 2.

    channels: of conv1; the others have 2, 4, 8 and 8 times as many; 64 in the papers. average_pool: pool5a, an average over 3 x 3
    after pool5. frozen_stages: how many, from the first, keep their weights in training.
    """

    channels: int = 64
    average_pool: bool = False
    frozen_stages: int = 0

    @property
    def features(self) -> int:
        """Channels that come out."""
        return 8 * self.channels


@dataclass(frozen=True)
class ResNet:
    """The backbone of V2's residual nets: output stride 8, layer3 dilated by 2 and layer4 by 4.

    blocks: bottlenecks of each of the four layers. channels: of conv1. frozen_norm: batch norm keeps its pretrained statistics,
    scale and shift also in training, as in the released models; a net that trains from nothing needs False.
    """

    blocks: tuple[int, int, int, int]
    channels: int = 64
    frozen_norm: bool = True

    @property
    def features(self) -> int:
        """Channels that come out."""
        return 32 * self.channels


@dataclass(frozen=True)
class Head:
    """From the backbone to the classes: a branch for each dilation rate, summed.

    channels > 0: fc6 (kernel x kernel, dilated), fc7 (1 x 1) and fc8 (1 x 1, to the classes), with ReLU and dropout between.
    channels = 0: one convolution straight to the classes. dropout: the share of features left out in training. Padding keeps the
    size: rate * (kernel - 1) / 2.
    """

    kernel: int
    rates: tuple[int, ...]
    channels: int = 0
    dropout: float = 0.5


@dataclass(frozen=True)
class Variant:
    """One network of the papers.

    name: how it is called here. msc_channels > 0: branches of so many channels on the image and on pool1..pool4 (V1's
    multi-scale features). multi_scale: whether the released network sees its input at scales 1, 0.75 and 0.5. crf: the preset of
    its CRF. taken_for: the variant with the same layers that a file is taken for where it is not said which one it is.
    """

    name: str
    backbone: VGG16 | ResNet
    head: Head
    crf: str
    msc_channels: int = 0
    multi_scale: bool = False
    taken_for: str | None = None


LARGE_FOV = Head(kernel=3, rates=(12,), channels=1024)
ASPP_RATES = (6, 12, 18, 24)


def _papers() -> tuple[Variant, ...]:
    v1, v2 = "deeplab-v1-largefov", "deeplab-v2-vgg16"
    pooled, plain = VGG16(average_pool=True), VGG16()
    deeplab = Head(kernel=4, rates=(4,), channels=4096)
    vgg = (
        Variant("v1-vgg16-largefov", pooled, LARGE_FOV, v1),
        Variant("v1-vgg16-7x7", plain, replace(deeplab, kernel=7), v1),
        Variant("v1-vgg16-4x4", plain, replace(deeplab, rates=(8,)), v1),
        Variant("v1-vgg16-vgg16", plain, deeplab, v1),
        Variant("v1-vgg16-msc", plain, deeplab, "deeplab-v1-msc", msc_channels=128),
        Variant("v1-vgg16-msc-largefov", pooled, LARGE_FOV, "deeplab-v1-msc-largefov", msc_channels=128),
        Variant("v2-vgg16-largefov", plain, LARGE_FOV, v2),
        Variant("v2-vgg16-aspp-s", plain, replace(LARGE_FOV, rates=(2, 4, 8, 12)), v2),
        Variant("v2-vgg16-aspp-l", plain, replace(LARGE_FOV, rates=ASPP_RATES), v2),
    )
    # Ours, for small machines: half of the backbone's channels, fewer of the heads'; see `models.narrow`.
    half, head = VGG16(channels=32, frozen_stages=1), Head(kernel=3, rates=(12,), channels=384, dropout=0.2)
    narrow = (
        Variant("v1-narrow-largefov", replace(half, average_pool=True), head, v1),
        Variant("v2-narrow-aspp-s", half, replace(head, rates=(2, 4, 8, 12), channels=128), v2),
        Variant("v2-narrow-aspp-l", half, replace(head, rates=ASPP_RATES, channels=128), v2),
    )
    trunks = {
        "resnet101": ResNet((3, 4, 23, 3)),
        "resnet50": ResNet((3, 4, 6, 3)),
        # Ours, for small machines: a quarter of the channels of ResNet-101, and 8 blocks instead of 33.
        "compact": ResNet((2, 2, 2, 2), channels=16, frozen_norm=False),
    }
    heads = {"largefov": Head(kernel=3, rates=(12,)), "aspp": Head(kernel=3, rates=ASPP_RATES)}
    residual = tuple(
        Variant(
            f"v2-{backbone}-{head}",
            trunks[backbone],
            heads[head],
            "deeplab-v2-resnet101",
            multi_scale=backbone != "compact",
        )
        for backbone in trunks
        for head in heads
    )
    small = replace(heads["aspp"], rates=(3, 6, 9, 12))  # kazuto1011/deeplab-pytorch's DeepLabV2S
    return (
        *vgg,
        *narrow,
        *residual,
        Variant(
            "v2-resnet101-aspp-s",
            trunks["resnet101"],
            small,
            "deeplab-v2-resnet101",
            multi_scale=True,
            taken_for="v2-resnet101-aspp",
        ),
    )


VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _papers()})


def get_variant(name: str) -> Variant:
    """The variant called ``name``. Raises ValueError that lists the names there are."""
    try:
        return VARIANTS[name]
    except (KeyError, TypeError):
        raise ValueError(f"model must be one of {', '.join(VARIANTS)}; got {name!r}") from None
