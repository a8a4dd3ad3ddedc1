"""DeepLab V1 LargeFOV and V2 ResNet-101 as plain torch modules with random weights: what `fuse` is timed on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeplab_crf.benchmark.conv import CLASSES


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut; the stride in the first 1x1, as in the papers' network."""

    def __init__(self, inputs: int, width: int, stride: int, rate: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, rate, rate, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        layers = [nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)]
        self.downsample = nn.Sequential(*layers) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 width, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet101(nn.Module):
    """DeepLabV2: output stride 8, the four branches summed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        blocks, channels = [], 64
        for width, stride, rate, count in ((64, 1, 1, 3), (128, 2, 1, 4), (256, 1, 2, 23), (512, 1, 4, 3)):
            for i in range(count):
                blocks.append(Bottleneck(channels, width, stride if i == 0 else 1, rate, i == 0))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.aspp = nn.ModuleList([nn.Conv2d(2048, CLASSES, 3, padding=r, dilation=r) for r in (6, 12, 18, 24)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> scores at an eighth."""
        features = self.blocks(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        scores: Tensor = sum(branch(features) for branch in self.aspp)  # type: ignore[assignment]
        return scores


def large_fov() -> nn.Sequential:
    """DeepLab V1 LargeFOV."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (filters, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        rate = 2 if stage == 5 else 1
        for _ in range(count):
            layers += [nn.Conv2d(channels, filters, 3, padding=rate, dilation=rate), nn.ReLU(inplace=True)]
            channels = filters
        layers.append(nn.MaxPool2d(3, 2 if stage < 4 else 1, 1, ceil_mode=stage < 4))
    layers += [
        nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(512, 1024, 3, padding=12, dilation=12),
        nn.ReLU(inplace=True),
        nn.Dropout(),
    ]
    layers += [nn.Conv2d(1024, 1024, 1), nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(1024, CLASSES, 1)]
    return nn.Sequential(*layers)


NETWORKS = {"V1 LargeFOV": large_fov, "V2 ResNet-101": ResNet101}


def make_network(name: str) -> nn.Module:
    """In eval mode, the same weights every time."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()
