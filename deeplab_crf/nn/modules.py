"""Modules over `dilated_conv2d` and `aspp_sum`, with the parameters of torch.nn.Conv2d."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeplab_crf.ops.conv.algorithms import current_policy
from deeplab_crf.ops.conv.operators import aspp_sum, check_activation, convolve
from deeplab_crf.ops.conv.shapes import pair


def _empty_parameters(shape: Sequence[int], bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return weight and bias, initialised as torch.nn.Conv2d does."""
    weight = nn.Parameter(torch.empty(tuple(shape)))
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return weight, nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound)) if bias else None


class DilatedConv2d(nn.Module):
    """`deeplab_crf.dilated_conv2d` as a module: ``activation(conv2d(x) + residual)``.

    The parameters ``weight`` and ``bias`` are those of torch.nn.Conv2d, whose state dict can be loaded.
    Weights are transformed at the first call, and again after they have changed.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        kernel_size: One number or (rows, columns).
        stride: One number or (rows, columns).
        padding: One number or (rows, columns).
        dilation: One number or (rows, columns).
        bias: Whether there is a bias.
        activation: None or "relu".
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
        check_activation(activation)
        self.stride, self.padding = pair(stride, "stride"), pair(padding, "padding")
        self.dilation, self.activation = pair(dilation, "dilation"), activation
        kernel = pair(kernel_size, "kernel_size")
        self.weight, self.bias = _empty_parameters((out_channels, in_channels, *kernel), bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute the convolution of x, (B, C, H, W) or (C, H, W); residual has the shape of the result."""
        return self._convolve(x, residual, self.activation)

    def _policy(self) -> int:
        return current_policy()

    def _convolve(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation)
        return convolve(x, (self.weight, self.bias), residual, geometry, activation == "relu", self._policy())

    def extra_repr(self) -> str:
        """Describe the arguments as torch.nn.Conv2d does."""
        filters, channels, *kernel = self.weight.shape
        return (
            f"{channels}, {filters}, kernel_size={tuple(kernel)}, stride={tuple(self.stride)}, padding={tuple(self.padding)}, "
            f"dilation={tuple(self.dilation)}, bias={self.bias is not None}, activation={self.activation}"
        )


class ASPPSum(nn.Module):
    """`deeplab_crf.aspp_sum` as a module: the sum of parallel dilated convolutions of DeepLabV2's head.

    It has parameters ``weights.i`` (K, C, k, k) and ``biases.i`` (K,) for each rate.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result, which has the size of the input.
        rates: The dilation of each branch.
        kernel_size: An odd number.
        bias: Whether each branch has a bias.
    """

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
        """Compute the sum over the branches for x, (B, C, H, W) or (C, H, W)."""
        return aspp_sum(x, list(self.weights), list(self.biases) or None, self.rates)

    def extra_repr(self) -> str:
        """Describe the arguments."""
        filters, channels, *kernel = self.weights[0].shape
        return f"{channels}, {filters}, kernel_size={tuple(kernel)}, rates={tuple(self.rates)}, bias={len(self.biases) > 0}"
