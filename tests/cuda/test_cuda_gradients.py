"""Derivatives of the filter and of the embedding in the CUDA engine, emulated on the CPU, against the CPU engine's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import samples
from cuda_native import CudaLattices
from native_batch import Lattices
from numpy.typing import NDArray

DTYPES = [np.float32, np.float64]


def random(*shape: int, dtype: type, seed: int, scale: float = 1.0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 21, 24, 33])
@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8])
def test_weight_gradient(emulated: ModuleType, dims: int, channels: int, dtype: type) -> None:
    features = random(2, 257, dims, dtype=dtype, seed=0, scale=1.5)
    inputs, grad = (random(2, 257, channels, dtype=dtype, seed=seed) for seed in (1, 2))
    lattices, judge = CudaLattices(emulated, features), Lattices(features)
    for transpose in (False, True):
        got = lattices.weight_gradient(inputs, grad, transpose=transpose)
        want = judge.weight_gradient(inputs, grad, transpose=transpose)
        assert samples.scaled_error(got, want) <= samples.TOLERANCE[np.dtype(dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", [1, 255, 257])
@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8, 32])
def test_embed_gradient(emulated: ModuleType, dims: int, points: int, dtype: type) -> None:
    features = random(2, points, dims, dtype=dtype, seed=0, scale=1.5)
    grad = random(2, points, dims + 1, dtype=dtype, seed=1)
    got, want = CudaLattices(emulated, features).embed_gradient(grad), Lattices(features).embed_gradient(grad)
    assert samples.scaled_error(got, want) <= samples.TOLERANCE[np.dtype(dtype)]


def test_embed_gradient_takes_the_simplex_of_the_build(emulated: ModuleType) -> None:
    """Far from zero float32 features are embedded in double, image by image."""
    features = random(2, 2000, 3, dtype=np.float32, seed=0, scale=1.5)
    features[1] += 30000
    grad = random(2, 2000, 4, dtype=np.float32, seed=1)
    got, want = CudaLattices(emulated, features).embed_gradient(grad), Lattices(features).embed_gradient(grad)
    assert samples.scaled_error(got, want) <= 1e-5
