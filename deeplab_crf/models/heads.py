"""From features to class scores: LargeFOV, ASPP and V1's multi-scale features."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from deeplab_crf.models.interp import interp
from deeplab_crf.models.variants import Head

# V1's branches: what they read, its channels in units of the first stage's (None: an image), and their stride in training, which
# brings all of them to output stride 8.
MSC_BRANCHES = (("data", None, 8), ("pool1", 1, 4), ("pool2", 2, 2), ("pool3", 4, 1), ("pool4", 8, 1))


def score_layer(channels: int, num_classes: int, kernel: int = 1, rate: int = 1) -> nn.Conv2d:
    """The last convolution, initialised as the papers do: N(0, 0.01), no bias."""
    layer = nn.Conv2d(channels, num_classes, kernel, padding=rate * (kernel - 1) // 2, dilation=rate)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class SummedBranches(nn.Module):
    """One branch a dilation rate on the same features, their scores summed: LargeFOV has one, ASPP (atrous spatial pyramid
    pooling, section 3.2 of arXiv 1606.00915) has four."""

    def __init__(self, head: Head, features: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(head, rate, features, num_classes) for rate in head.rates)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, features, h, w)`` to scores ``(B, num_classes, h, w)``."""
        scores: Tensor = self.branches[0](features)
        for branch in list(self.branches)[1:]:
            scores = scores + branch(features)
        return scores

    def score_layers(self) -> list[str]:
        """Names of the convolutions whose channels are the classes."""
        last = "" if isinstance(self.branches[0], nn.Conv2d) else ".fc8"
        return [f"branches.{k}{last}" for k in range(len(self.branches))]


def _branch(head: Head, rate: int, features: int, num_classes: int) -> nn.Module:
    if head.channels == 0:
        return score_layer(features, num_classes, head.kernel, rate)
    padding = rate * (head.kernel - 1) // 2
    layers: dict[str, nn.Module] = {
        "fc6": nn.Conv2d(features, head.channels, head.kernel, padding=padding, dilation=rate),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout(head.dropout),
        "fc7": nn.Conv2d(head.channels, head.channels, 1),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout(head.dropout),
        "fc8": score_layer(head.channels, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


class MultiScaleFeatures(nn.Module):
    """V1's MSc (section 4.3 of arXiv 1412.7062): scores from the image and from pool1..pool4, to be added to fc8's.

    Each branch is 3 x 3, 1 x 1 and 1 x 1 to the classes. In training the first has stride 8, 4, 2, 1, 1, which gives scores at
    output stride 8; in evaluation stride 1, and the scores are enlarged to the image's size.
    """

    def __init__(self, backbone_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        for name, multiple, _ in MSC_BRANCHES:
            inputs = 3 if multiple is None else multiple * backbone_channels
            layers: dict[str, nn.Module] = {
                "conv": nn.Conv2d(inputs, channels, 3, padding=1),
                "relu_conv": nn.ReLU(inplace=True),
                "drop_conv": nn.Dropout(0.5),
                "fc": nn.Conv2d(channels, channels, 1),
                "relu_fc": nn.ReLU(inplace=True),
                "drop_fc": nn.Dropout(0.5),
                "ms": score_layer(channels, num_classes),
            }
            self.add_module(name, nn.Sequential(OrderedDict(layers)))

    def forward(self, images: Tensor, pooled: list[Tensor], top: Tensor) -> Tensor:
        """All scores summed: at the size of ``top``, the scores of fc8, in training; at the size of ``images`` in evaluation."""
        if self.training:
            total = top
        else:
            total = interp(top, (images.shape[-2], images.shape[-1]))
        for (name, _, stride), values in zip(MSC_BRANCHES, [images, *pooled], strict=True):
            total = total + self._scores(name, values, stride, total)
        return total

    def _scores(self, name: str, values: Tensor, stride: int, total: Tensor) -> Tensor:
        branch = self.get_submodule(name)
        assert isinstance(branch, nn.Sequential)
        if not self.training:
            return interp(branch(values), (total.shape[-2], total.shape[-1]))
        first, rest = branch[0], branch[1:]
        assert isinstance(first, nn.Conv2d)
        scores: Tensor = rest(torch.conv2d(values, first.weight, first.bias, stride=stride, padding=1))
        return scores

    def score_layers(self) -> list[str]:
        """Names of the convolutions whose channels are the classes."""
        return [f"{name}.ms" for name, _, _ in MSC_BRANCHES]
