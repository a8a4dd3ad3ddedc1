"""Modules over `dilated_conv2d` and `aspp_sum`, with the parameters of torch.nn.Conv2d."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeplab_crf.ops.conv.algorithms import get_conv_algorithm
from deeplab_crf.ops.conv.operators import ACTIVATIONS, aspp_sum, convolve
from deeplab_crf.ops.conv.shapes import pair


def _empty_parameters(shape: Sequence[int], bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias as torch.nn.Conv2d initialises them."""
    weight = nn.Parameter(torch.empty(tuple(shape)))
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return weight, nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound)) if bias else None


class DilatedConv2d(nn.Module):
    """``activation(conv2d(x) + residual)``; `deeplab_crf.dilated_conv2d` with parameters ``weight`` and ``bias`` as
    torch.nn.Conv2d has them: the state dict of one loads into the other. Weights are transformed at the first call, and again when
    they have changed.

    activation: None or "relu". bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f'activation must be None or "relu"; got {activation!r}')
        self.stride, self.padding = pair(stride, "stride"), pair(padding, "padding")
        self.dilation, self.activation = pair(dilation, "dilation"), activation
        kernel = pair(kernel_size, "kernel_size")
        self.weight, self.bias = _empty_parameters((out_channels, in_channels, *kernel), bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W) or (C, H, W). residual: of the result's shape."""
        return self._convolve(x, residual, self.activation)

    def _policy(self) -> str:
        return get_conv_algorithm()

    def _convolve(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation)
        return convolve(x, (self.weight, self.bias), residual, geometry, activation == "relu", self._policy())

    def extra_repr(self) -> str:
        """Like that of torch.nn.Conv2d."""
        filters, channels, *kernel = self.weight.shape
        return (
            f"{channels}, {filters}, kernel_size={tuple(kernel)}, stride={tuple(self.stride)}, padding={tuple(self.padding)}, "
            f"dilation={tuple(self.dilation)}, bias={self.bias is not None}, activation={self.activation}"
        )


class ASPPSum(nn.Module):
    """The sum of parallel dilated convolutions over one input that keep its size: DeepLabV2's head. `deeplab_crf.aspp_sum` with the
    parameters ``weights.i`` (K, C, k, k) and ``biases.i`` (K,), one for each of ``rates``. kernel_size: odd."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        kernel_size: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.rates = list(rates)
        made = [_empty_parameters((out_channels, in_channels, kernel_size, kernel_size), bias) for _ in self.rates]
        self.weights = nn.ParameterList([weight for weight, _ in made])
        self.biases = nn.ParameterList([bias for _, bias in made if bias is not None])

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) or (C, H, W)."""
        return aspp_sum(x, list(self.weights), list(self.biases) or None, self.rates)

    def extra_repr(self) -> str:
        """Channels, filters, rates."""
        filters, channels, *kernel = self.weights[0].shape
        return f"{channels}, {filters}, kernel_size={tuple(kernel)}, rates={tuple(self.rates)}, bias={len(self.biases) > 0}"
