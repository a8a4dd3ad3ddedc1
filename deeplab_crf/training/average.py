"""The running mean of a training's weights, which generalises better than any of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average (Polyak & Juditsky 1992) of ``network``, whose ``module`` is a network with those weights; to
    be told of every iteration by ``update_parameters(network)``.

    After iteration n, from 0, the average a becomes ``d a + (1 - d) w`` with d = min(decay, (1 + n) / (10 + n)): of a short past at
    first, so that the weights of the beginning are soon forgotten. Buffers are the network's.
    """

    def move(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, multi_avg_fn=move)  # type: ignore[arg-type]
