"""Convolutions for tests and their expected results: torch in float64, with the epilogue written out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Sizes(NamedTuple):
    """One convolution: batch, channels, filters, height, width, then the arguments of conv2d."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    def geometry(self) -> dict[str, Any]:
        """The keyword arguments of conv2d."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


def tensors(sizes: Sizes, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return input, weight and bias with the statistics of a trained network: inputs after a ReLU, scaled weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(sizes.batch, sizes.channels, sizes.height, sizes.width).clamp_min(0)
    weight = normal(sizes.filters, sizes.channels, *sizes.kernel)
    weight *= (2 / (sizes.channels * sizes.kernel[0] * sizes.kernel[1])) ** 0.5
    return x.to(dtype), weight.to(dtype), normal(sizes.filters).to(dtype)


def expected(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    **geometry: Any,
) -> Tensor:
    """Return the result of `dilated_conv2d` in float64."""
    y = torch.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), **geometry)
    if residual is not None:
        y = y + residual.double()
    return y.relu() if relu else y


def error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference over the largest value."""
    got, want = got.detach().double(), want.detach().double()
    if want.numel() == 0:
        return 0.0
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))
