"""Optimizers with the papers' learning rate for each kind of parameter."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.training.settings import TrainSettings

SCORE_LAYERS, BIASES = 10.0, 2.0  # times the backbone's learning rate


def make_optimizer(network: DeepLab, settings: TrainSettings) -> torch.optim.Optimizer:
    """Make SGD with momentum, as in the papers, or AdamW, over `parameter_groups`.

    Call `set_learning_rate` before the first step.

    References:
        Loshchilov & Hutter, arXiv 1711.05101 (AdamW).
    """
    groups = parameter_groups(network, settings.weight_decay, settings.head_rate)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


def parameter_groups(network: DeepLab, weight_decay: float, head_rate: float = 1.0) -> list[dict[str, Any]]:
    """Return the trained parameters in groups, with multiples of the learning rate.

    - Weights have the multiple 1, biases 2 without weight decay.
    - Layers after the backbone have ``head_rate`` times that, and those that give the classes'
      scores another 10 times, except V1's multi-scale features: in the released prototxt, each of
      their layers has the multiples 1 and 2.
    - Scale and shift of batch norm, where they are trained (the papers freeze them), count as
      weights without decay.

    Args:
        network: The network that is trained.
        weight_decay: The decay of weights.
        head_rate: The learning rate after the backbone, in units of the backbone's.
    """
    last = {name for name in network.score_layers() if not name.startswith("msc.")}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, module in network.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            multiple = 1.0 if name.startswith("backbone.") else head_rate
            if name in last:
                multiple *= SCORE_LAYERS
            decay = weight_decay
            if isinstance(module, nn.BatchNorm2d):
                decay = 0.0
            elif kind == "bias":
                multiple, decay = multiple * BIASES, 0.0
            groups[multiple, decay].append(parameter)
    return [
        {"params": members, "multiple": multiple, "weight_decay": decay}
        for (multiple, decay), members in groups.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set ``rate`` for the backbone's weights, and its multiples for the others."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiple"]
