"""A backbone with fewer channels from a pretrained one, without training: what a small machine starts from.

Each layer keeps the channels from which the others are best linear combinations (pivoted Cholesky decomposition of their second
moments, as interpolative decompositions do: Chee et al., NeurIPS 2022, arXiv 2108.00065), and its weights are fitted anew, by
ridge regression on the narrow backbone's own features, to what the full layer says before ReLU (as He et al., ICCV 2017, arXiv
1707.06168). So errors do not pile up from layer to layer. Then each layer is scaled so that what leaves it has mean square one,
which with ReLU and pooling changes nothing but the scale of the features, and makes all layers learn at similar rates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_crf.models.vgg import VGG16Backbone

RIDGE = 1e-4  # of the mean second moment of the inputs
SAMPLES = 60_000  # pixels that each layer is fitted to


@torch.no_grad()
def prune_backbone(full: VGG16Backbone, narrow: VGG16Backbone, images: Tensor, seed: int = 0) -> list[float]:
    """Fill ``narrow`` so that it gives the features of ``full`` on ``images``, but for its scale and the channels that it lacks.

    full, narrow: backbones of the same layers, the second with at most as many channels. images: ``(B, 3, H, W)``, BGR
    minus the mean; some dozen crops of the training images. seed: chooses the pixels. Both stay in the mode they are in.

    Returns each convolution's relative error: the mean squared difference to the full layer's kept channels before ReLU, over
    their variance. Raises ValueError where the backbones do not fit.
    """
    _check(full, narrow, images)
    generator = torch.Generator().manual_seed(seed)
    wide, thin = list(torch.split(images, 1)), list(torch.split(images, 1))
    errors = []
    for layer, small in zip(full.features, narrow.features, strict=True):
        if not isinstance(layer, nn.Conv2d):
            wide, thin = [layer(values.clone()) for values in wide], [small(values.clone()) for values in thin]
            continue
        assert isinstance(small, nn.Conv2d)
        wide = [layer(values) for values in wide]
        kept = _kept_channels(wide, small.out_channels, generator)
        errors.append(_fit(small, thin, [values[:, kept] for values in wide], generator))
        _scale(small, thin)
        thin = [small(values) for values in thin]
    return errors


def _check(full: VGG16Backbone, narrow: VGG16Backbone, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images must have shape (B, 3, H, W), BGR minus the mean; got {tuple(images.shape)}")
    if len(full.features) != len(narrow.features):
        raise ValueError(
            f"narrow must have the layers of full, {len(full.features)}; got {len(narrow.features)} (average_pool must agree)"
        )
    channels = [
        next(m.out_channels for m in backbone.features if isinstance(m, nn.Conv2d)) for backbone in (full, narrow)
    ]
    if channels[1] > channels[0]:
        raise ValueError(f"narrow must have at most the {channels[0]} channels of full in conv1; got {channels[1]}")


def _kept_channels(outputs: list[Tensor], count: int, generator: torch.Generator) -> list[int]:
    """Sorted indices of ``count`` channels: each the one that those before explain least, after ReLU."""
    values = torch.cat([_sampled(each.relu().flatten(2)[0].T, len(outputs), generator) for each in outputs]).double()
    residual = values.T @ values
    kept: list[int] = []
    for _ in range(count):
        energy = residual.diagonal().clone()
        energy[kept] = -1
        pivot = int(energy.argmax())
        kept.append(pivot)
        if energy[pivot] > 0:
            residual = residual - torch.outer(residual[:, pivot], residual[pivot]) / residual[pivot, pivot]
    return sorted(kept)


def _fit(layer: nn.Conv2d, inputs: list[Tensor], targets: list[Tensor], generator: torch.Generator) -> float:
    """Weights and bias of ``layer`` by ridge regression from the patches of ``inputs``; returns the relative error."""
    patches, wanted = [], []
    for values, target in zip(inputs, targets, strict=True):
        both = torch.cat([_unfolded(values, layer), target.flatten(2)[0].T], 1)
        chosen = _sampled(both, len(inputs), generator)
        patches.append(chosen[:, : -target.shape[1]])
        wanted.append(chosen[:, -target.shape[1] :])
    x, y = torch.cat(patches).double(), torch.cat(wanted).double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    moments = x.T @ x
    penalty = moments.diagonal()[:-1].mean() * RIDGE + 1e-12  # where nothing comes in, nothing is fitted
    moments.diagonal()[:-1] += penalty  # the bias is free
    solution = torch.linalg.solve(moments, x.T @ y)
    layer.weight.copy_(solution[:-1].T.reshape(layer.weight.shape))
    assert layer.bias is not None
    layer.bias.copy_(solution[-1])
    return float(((x @ solution - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum().clamp(min=1e-300))


def _scale(layer: nn.Conv2d, inputs: list[Tensor]) -> None:
    """Divide weights and bias so that the mean square after ReLU is one."""
    squares = torch.stack([layer(values).relu().double().square().mean() for values in inputs]).mean()
    if squares > 0:
        factor = squares.rsqrt().to(layer.weight.dtype)
        layer.weight.mul_(factor)
        assert layer.bias is not None
        layer.bias.mul_(factor)


def _unfolded(values: Tensor, layer: nn.Conv2d) -> Tensor:
    """``(pixels, channels * 9)``: what the layer's kernel sees at each pixel."""
    size, rate, padding = layer.kernel_size[0], layer.dilation[0], layer.padding[0]
    assert isinstance(padding, int)
    return F.unfold(values, size, dilation=rate, padding=padding)[0].T


def _sampled(rows: Tensor, parts: int, generator: torch.Generator) -> Tensor:
    """At most ``SAMPLES / parts`` of the rows, at random."""
    return rows[torch.randperm(len(rows), generator=generator)[: max(SAMPLES // parts, 1)]]
