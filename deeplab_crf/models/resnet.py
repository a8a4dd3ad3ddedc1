"""Residual nets at output stride 8 (V2, section 3.1 of arXiv 1606.00915), with torchvision's names of layers."""

from __future__ import annotations

from torch import Tensor, nn

from deeplab_crf.models.variants import ResNet

EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (dilated), 1 x 1, around a shortcut. The stride is that of the first 1 x 1, as in Caffe (torchvision: the 3 x
    3)."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, h, w)`` to ``(B, 4 * width, h / stride, w / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        result: Tensor = self.relu(y + shortcut)
        return result


class ResNetBackbone(nn.Module):
    """Images ``(B, 3, H, W)``, BGR minus the mean, to features ``(B, 2048, h, w)``: 321 -> 41, 513 -> 65.

    conv1 7 x 7 stride 2, max pool 3 x 3 stride 2 (padding 1, ceil mode: 161 -> 81), then strides 1, 2, 1, 1 and dilations 1, 1,
    2, 4.
    """

    def __init__(self, settings: ResNet) -> None:
        super().__init__()
        self.frozen_norm = settings.frozen_norm
        width = settings.channels
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.channels = width
        self.layer1 = self._layer(settings.blocks[0], width, stride=1, dilation=1)
        self.layer2 = self._layer(settings.blocks[1], 2 * width, stride=2, dilation=1)
        self.layer3 = self._layer(settings.blocks[2], 4 * width, stride=1, dilation=2)
        self.layer4 = self._layer(settings.blocks[3], 8 * width, stride=1, dilation=4)
        self._initialise()
        self.train()  # freezes what has to be frozen

    def _layer(self, blocks: int, width: int, stride: int, dilation: int) -> nn.Sequential:
        layers = []
        for block in range(blocks):
            layers.append(Bottleneck(self.channels, width, stride if block == 0 else 1, dilation))
            self.channels = EXPANSION * width
        return nn.Sequential(*layers)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d) and self.frozen_norm:
                module.weight.requires_grad_(False)
                module.bias.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNetBackbone:
        """Training mode; frozen batch norm stays in evaluation mode and keeps its statistics."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, 2048, h, w)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        result: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return result
