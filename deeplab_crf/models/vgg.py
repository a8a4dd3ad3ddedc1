"""VGG-16 at output stride 8 (V1, section 3.1 of arXiv 1412.7062), with torchvision's names of layers."""

from __future__ import annotations

from torch import Tensor, nn

from deeplab_crf.models.variants import VGG16

# Convolutions of the five stages, and their channels in units of the first stage's.
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG16Backbone(nn.Module):
    """Images ``(B, 3, H, W)``, BGR minus the mean, to features ``(B, 512, h, w)``: 321 -> 41, 513 -> 65.

    3 x 3 convolutions with padding 1; 3 x 3 pooling, padding 1, in ceil mode: stride 2 thrice, then stride 1 and conv5 dilated by
    2. ``features`` are numbered as torchvision's, from conv1_1 = 0 to conv5_3 = 28 and pool5 = 30.
    """

    def __init__(self, settings: VGG16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.pools: tuple[int, ...] = ()  # where pool1..pool5 stand
        channels = 3
        for stage, (convolutions, multiple) in enumerate(STAGES):
            dilation = 2 if stage == 4 else 1
            for _ in range(convolutions):
                width = multiple * settings.channels
                convolution = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
                convolution.requires_grad_(stage >= settings.frozen_stages)
                layers += [convolution, nn.ReLU(inplace=True)]
                channels = width
            self.pools += (len(layers),)
            layers.append(nn.MaxPool2d(3, stride=2 if stage < 3 else 1, padding=1, ceil_mode=True))
        if settings.average_pool:
            layers.append(nn.AvgPool2d(3, stride=1, padding=1))  # pool5a; the padding is counted, as in Caffe
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, 512, h, w)``."""
        features: Tensor = self.features(images)
        return features

    def forward_pools(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features, and what came out of pool1..pool4: ``(B, 64, ...)``, ``128``, ``256``, ``512`` at strides 2, 4, 8, 8."""
        values, pooled = images, []
        for place, layer in enumerate(self.features):
            values = layer(values)
            if place in self.pools[:4]:
                pooled.append(values)
        return values, pooled
