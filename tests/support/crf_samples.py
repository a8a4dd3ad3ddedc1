"""Small inputs for tests of operators and layers in torch."""

from __future__ import annotations

from collections.abc import Callable

import samples
import torch
from torch import Tensor

from deeplab_crf.ops.lattice.operators import build_lattice
from deeplab_crf.ops.mean_field.forward import PairwiseTerm


def here(tensor: Tensor) -> Tensor:
    """On the default device: random numbers come from the CPU, the same for every device."""
    return tensor.to(torch.get_default_device())


# Numerical differentiation moves points by far less.
_MARGIN = 1e-4


def is_generic(features: Tensor) -> bool:
    """Whether no point of features ``(B, N, d)`` comes near a face of its simplex, where the lattice operator has kinks. Points on
    a face exactly (a pixel of column 0) are fine: they move along it."""
    weights = build_lattice(features.detach()).weights
    return not ((weights > 1e-12) & (weights < _MARGIN)).any()


def generic(make: Callable[[torch.Generator], Tensor], seed: int = 0) -> Tensor:
    """The first ``make(generator)``, features ``(B, N, d)`` from seeds ``seed``, ``seed + 1``, ..., that `is_generic`."""
    for attempt in range(seed, seed + 1000):
        features = make(torch.Generator("cpu").manual_seed(attempt))
        if is_generic(features):
            return features
    raise AssertionError("no seed keeps points away from the faces of their simplices: take fewer points")


def generic_features(batch: int, points: int, dims: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Features ``(B, N, d)``, normal deviates away from the faces of simplices."""
    shape = (batch, points, dims)
    return generic(lambda generator: here(torch.randn(shape, dtype=dtype, generator=generator, device="cpu")), seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal deviates."""
    generator = torch.Generator("cpu").manual_seed(seed + 77)
    return here(torch.randn(shape, dtype=dtype, generator=generator, device="cpu"))


def permutation(count: int, seed: int = 0) -> Tensor:
    """Of 0 .. count - 1, int64."""
    return here(torch.randperm(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu"))


def photos(batch: int, height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images ``(B, 3, H, W)`` in 0..255, each with other content."""
    images = [torch.from_numpy(samples.photo(height, width, seed=seed + image)) for image in range(batch)]
    return here(torch.stack(images).permute(0, 3, 1, 2).to(dtype))


def unrolled_mean_field(
    unary: Tensor, terms: list[PairwiseTerm], iterations: int, order: Tensor | None = None, start: Tensor | None = None
) -> Tensor:
    """log Q by torch operations on one lattice filter after the other, autograd through each: slow and obvious."""
    walk = torch.arange(unary.shape[1], device=unary.device) if order is None else order.long()
    back = torch.argsort(walk)
    energies = unary[:, walk]
    log_q = torch.log_softmax(-energies, -1) if start is None else start[:, walk].log()
    for _ in range(iterations):
        change = torch.zeros_like(energies)
        for lattice, norm_in, norm_out, compatibility in terms:
            q = log_q.exp()
            message = lattice.filter(q if norm_in is None else q * norm_in[..., None])
            message = message if norm_out is None else message * norm_out[..., None]
            if compatibility.ndim == 0:
                change = change - compatibility * message
            elif compatibility.ndim == 1:
                change = change + compatibility * message
            else:
                change = change + message @ compatibility.T
        log_q = torch.log_softmax(-energies - change, -1)
    return log_q[:, back]
