"""A CRF whose messages come from a small window around each pixel, in plain torch, as ConvCRF has it (Teichmann & Cipolla, BMVC
2019). Another model than a dense CRF: its times are comparable, its results are not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case

SPAN = 3  # ConvCRF's window of 7 x 7


def windows(values: Tensor) -> Tensor:
    """(B, C, H, W) as (B, C, window, H, W): the neighbours of every pixel, zeros beyond the edge."""
    batch, channels, height, width = values.shape
    size = 2 * SPAN + 1
    return functional.unfold(values, size, padding=SPAN).view(batch, channels, size * size, height, width)


def window_kernel(features: Tensor) -> Tensor:
    """(B, window, H, W): normalised Gaussian kernel of features (B, d, H, W) with every neighbour; the pixel itself and what lies
    beyond the edge take no part."""
    distance = (windows(features) - features[:, :, None]).square().sum(dim=1)
    kernel = torch.exp(-0.5 * distance) * windows(torch.ones_like(features[:, :1]))[:, 0]
    kernel[:, kernel.shape[1] // 2] = 0
    return kernel / kernel.sum(dim=1, keepdim=True).clamp_min(1e-20)


def truncated_crf(case: Case, logits: Tensor, image: Tensor) -> Tensor:
    """Refined logits (B, L, H, W) by the kernels and the iterations of a case."""
    axes = [torch.arange(size, device=logits.device, dtype=logits.dtype) for size in logits.shape[2:]]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    positions = torch.stack([columns, rows])[None].expand(len(logits), -1, -1, -1)
    sxy, srgb, weight = case.bilateral
    colours = image.to(logits.dtype) / srgb
    kernel = case.gaussian[1] * window_kernel(positions / case.gaussian[0])
    kernel += weight * window_kernel(torch.cat([positions / sxy, colours], dim=1))
    log_q = torch.log_softmax(logits, dim=1)
    for _ in range(case.iterations):
        message = (kernel[:, None] * windows(log_q.exp())).sum(dim=2)
        log_q = torch.log_softmax(logits + message, dim=1)
    return log_q
