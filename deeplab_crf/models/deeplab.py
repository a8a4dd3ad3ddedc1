"""DeepLab V1 and V2 as torch modules, built from the table of variants."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deeplab_crf.models.heads import MultiScaleFeatures, SummedBranches
from deeplab_crf.models.interp import interp, pad_bottom_right, padded_size, scaled_image
from deeplab_crf.models.metadata import Usage
from deeplab_crf.models.resnet import ResNetBackbone
from deeplab_crf.models.variants import VGG16, Variant, get_variant
from deeplab_crf.models.vgg import VGG16Backbone
from deeplab_crf.runtime.checks import whole_number

SCALES = (1.0, 0.75, 0.5)


class Scores(NamedTuple):
    """What a network says before upsampling, for an input padded to ``size`` (rows, columns).

    fused: ``(B, C, h, w)``, the scores to use. scales: what is trained beside it (empty without multi-scale inputs): the scores of
    scale 1, of scale 0.75 brought to the same size, and of scale 0.5 at their own size, ``(B, C, h', w')``.
    """

    fused: Tensor
    scales: tuple[Tensor, ...]
    size: tuple[int, int]


class DeepLab(nn.Module):
    """One network of the papers; see `deeplab_crf.models.VARIANTS`.

    variant: which. num_classes: C, background included. multi_scale: run on the image at scales 1, 0.75 and 0.5 with shared weights
    and take the maximum of the scores; None: as the variant was released.

    Images are BGR minus the mean (104.008, 116.669, 122.675), as `SegmentationPipeline` makes them. ``usage``: what weights that
    were loaded say of themselves, and what `save_weights` writes.
    """

    def __init__(self, variant: Variant, num_classes: int = 21, multi_scale: bool | None = None) -> None:
        super().__init__()
        self.variant, self.num_classes = variant, whole_number(num_classes, "num_classes", 1)
        self.usage = Usage()
        self.scales = SCALES if (variant.multi_scale if multi_scale is None else multi_scale) else SCALES[:1]
        if variant.msc_channels and len(self.scales) > 1:
            raise ValueError(f"multi_scale must be False for {variant.name}, whose multi-scale features it replaces")
        backbone = variant.backbone
        self.backbone = VGG16Backbone(backbone) if isinstance(backbone, VGG16) else ResNetBackbone(backbone)
        self.classifier = SummedBranches(variant.head, backbone.features, num_classes)
        self.msc: MultiScaleFeatures | None = None
        if variant.msc_channels:
            self.msc = MultiScaleFeatures(backbone.channels, variant.msc_channels, num_classes)
            # V1 trains the branches alone: conv1_1 to fc8 have the learning rate 0 in the released prototxt.
            self.backbone.requires_grad_(False)
            self.classifier.requires_grad_(False)

    @property
    def multi_scale(self) -> bool:
        """Whether images are seen at three scales."""
        return len(self.scales) > 1

    @property
    def size_multiple(self) -> int:
        """Inputs are padded to a multiple of this plus one, so that the scores of every scale meet the same pixels. Without aligned
        corners nothing is padded: there the size of the image itself says where scores lie."""
        if not self.usage.align_corners:
            return 1
        return 32 if self.multi_scale else 8

    def score_layers(self) -> list[str]:
        """Names of the convolutions whose channels are the classes."""
        names = [f"classifier.{name}" for name in self.classifier.score_layers()]
        return names + ([] if self.msc is None else [f"msc.{name}" for name in self.msc.score_layers()])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``out``: scores ``(B, C, H, W)`` at the size of the images ``(B, 3, H, W)``, before any softmax; with multi-scale inputs
        also ``aux``, the scores of scale 1 alone. As torchvision's segmentation models."""
        scores, corners = self.scores(images), self.usage.align_corners
        height, width = images.shape[-2], images.shape[-1]
        result = OrderedDict(out=interp(scores.fused, scores.size, corners)[..., :height, :width])
        if scores.scales:
            result["aux"] = interp(scores.scales[0], scores.size, corners)[..., :height, :width]
        return result

    def scores(self, images: Tensor) -> Scores:
        """Scores at output stride 8 (MSc in evaluation: stride 1), as the papers train and upsample them: 321 -> 41, 513 -> 65.

        Images of other sizes than multiples of `size_multiple` plus one are padded with zeros, the mean, at the bottom and right.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
            raise ValueError(f"images must have shape (B, 3, H, W), BGR minus the mean; got {tuple(images.shape)}")
        size = (padded_size(images.shape[-2], self.size_multiple), padded_size(images.shape[-1], self.size_multiple))
        padded = pad_bottom_right(images, size)
        if not self.multi_scale:
            return Scores(self._one_scale(padded), (), size)
        corners = self.usage.align_corners
        first = self._one_scale(padded)
        smaller = [self._one_scale(scaled_image(padded, scale, corners)) for scale in self.scales[1:]]
        enlarged = [interp(scores, (first.shape[-2], first.shape[-1]), corners) for scores in smaller]
        fused = torch.maximum(torch.maximum(first, enlarged[0]), enlarged[1])
        return Scores(fused, (first, enlarged[0], smaller[1]), size)

    def _one_scale(self, images: Tensor) -> Tensor:
        if self.msc is None:
            scores: Tensor = self.classifier(self.backbone(images))
            return scores
        assert isinstance(self.backbone, VGG16Backbone)
        features, pooled = self.backbone.forward_pools(images)
        combined: Tensor = self.msc(images, pooled, self.classifier(features))
        return combined


def build_model(name: str, num_classes: int = 21, multi_scale: bool | None = None) -> DeepLab:
    """The network of `deeplab_crf.models.VARIANTS` called ``name``, with new weights; other arguments as `DeepLab`'s."""
    return DeepLab(get_variant(name), num_classes, multi_scale)


def deeplabv1_vgg16(variant: str = "largefov", num_classes: int = 21) -> DeepLab:
    """DeepLab V1 (arXiv 1412.7062). variant: "largefov", "7x7", "4x4", "vgg16" (the paper's plain DeepLab), "msc" or
    "msc-largefov"."""
    return build_model(f"v1-vgg16-{variant}", num_classes)


def deeplabv2_vgg16(variant: str = "aspp-l", num_classes: int = 21) -> DeepLab:
    """DeepLab V2 on VGG-16 (arXiv 1606.00915). variant: "largefov", "aspp-s" or "aspp-l"."""
    return build_model(f"v2-vgg16-{variant}", num_classes)


def deeplabv2_resnet101(variant: str = "aspp", num_classes: int = 21, *, multi_scale: bool = True) -> DeepLab:
    """DeepLab V2 on ResNet-101 (arXiv 1606.00915). variant: "largefov", "aspp" or "aspp-s" (rates 3, 6, 9, 12)."""
    return build_model(f"v2-resnet101-{variant}", num_classes, multi_scale)


def deeplabv2_resnet50(variant: str = "aspp", num_classes: int = 21, *, multi_scale: bool = True) -> DeepLab:
    """`deeplabv2_resnet101` with 6 instead of 23 blocks in layer3. variant: "largefov" or "aspp"."""
    return build_model(f"v2-resnet50-{variant}", num_classes, multi_scale)


def deeplabv2_compact(variant: str = "aspp", num_classes: int = 21, *, multi_scale: bool = False) -> DeepLab:
    """A narrow and shallow residual net, to train on a small machine. variant: "largefov" or "aspp"."""
    return build_model(f"v2-compact-{variant}", num_classes, multi_scale)
