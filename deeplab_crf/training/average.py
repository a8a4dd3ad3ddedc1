"""The running mean of the weights of a training, which generalises better than any of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_average(network: nn.Module, decay: float) -> AveragedModel:
    """Make an exponential moving average of a network's weights.

    After iteration n, from 0, the average a becomes ``d a + (1 - d) w`` with d = min(decay, (1 + n)
    / (10 + n)), so that the first weights are soon forgotten. Buffers are those of the network.

    Args:
        network: The network that is trained.
        decay: The largest d, in [0, 1].

    Returns:
        The average, whose ``module`` is a network. Call ``update_parameters(network)`` after every
        iteration.

    References:
        Polyak & Juditsky, 1992.
    """

    def move(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, multi_avg_fn=move)  # type: ignore[arg-type]
