"""Batch norm over the whole batch of several processes.

torch's SyncBatchNorm does the same on CUDA alone, and is no `BatchNorm2d`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Total(torch.autograd.Function):
    """Sums every process's tensor, in all of them; its backward pass sums their gradients."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """A `BatchNorm2d` whose training statistics span all processes.

    Their batches must have one size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W)``; statistics are float32 for half precision too."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // self.num_features * dist.get_world_size()
        values = x.float()
        mean = _total_of_channels(values) / count
        centred = values - mean[:, None, None]
        variance = _total_of_channels(centred.square()) / count  # of what is centred: E[x^2] - E[x]^2 would cancel
        with torch.no_grad():
            self.num_batches_tracked += 1  # type: ignore[operator,assignment]
            for running, seen in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
                running.lerp_(seen, self.momentum)  # type: ignore[union-attr,arg-type]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _total_of_channels(values: Tensor) -> Tensor:
    total: Tensor = _Total.apply(values.sum(dim=(0, 2, 3)))  # type: ignore[no-untyped-call]
    return total


@contextmanager
def shared_batch_norm(network: nn.Module) -> Iterator[None]:
    """Within the block, share the statistics of each batch norm that is in training mode.

    Only the class of the modules changes, so parameters, buffers and hooks stay, and other code
    sees the same network.
    """
    norms = [module for module in network.modules() if type(module) is nn.BatchNorm2d and module.training]
    try:
        for module in norms:
            module.__class__ = SharedBatchNorm2d
        yield
    finally:
        for module in norms:
            module.__class__ = nn.BatchNorm2d
