"""Inputs for tests: small, seeded, and shaped like what the engine meets (scan lines that move through few cells)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def on_host(values: Any) -> NDArray[np.float64]:
    """An array, or a tensor of any device, in double precision."""
    return np.asarray(values.detach().cpu() if hasattr(values, "cpu") else values, np.float64)


def scaled_error(got: ArrayLike, want: ArrayLike) -> float:
    """Largest difference, relative to the largest wanted magnitude (at least 1)."""
    got_array, want_array = on_host(got), on_host(want)
    assert got_array.shape == want_array.shape
    if want_array.size == 0:
        return 0.0
    return float(np.abs(got_array - want_array).max() / max(1.0, np.abs(want_array).max()))


def relative_l2(got: ArrayLike, want: ArrayLike) -> float:
    """|got - want| / |want| in the Euclidean norm."""
    want_array = on_host(want)
    return float(np.linalg.norm(on_host(got) - want_array) / np.linalg.norm(want_array))


def features(points: int, dimensions: int, seed: int = 0, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """(N, d): a walk with small steps, so that neighbours share vertices and the whole spans several cells."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0.0, 0.15, (points, dimensions)), axis=0)
    return np.asarray(6.0 * np.sin(walk / 6.0) + rng.normal(0.0, 0.02, walk.shape), dtype)


def values(points: int, channels: int, seed: int = 0, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """(N, C) normal deviates."""
    return np.random.default_rng(seed + 1000).normal(size=(points, channels)).astype(dtype)


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, c) uint8: two flat regions with shading, an oblique edge and sensor noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    region = (rows * 0.7 + 3.0 * np.sin(columns / 5.0) > 0.35 * height).astype(np.float64)
    base, step, slope = rng.uniform(60, 120, channels), rng.uniform(-50, 90, channels), rng.uniform(-20, 20, channels)
    clean = base + step * region[..., None] + slope * (columns / max(width, 1))[..., None]
    return np.clip(np.rint(clean + rng.normal(0.0, 3.0, clean.shape)), 0, 255).astype(np.uint8)


def energies(labels: int, points: int, seed: int = 0, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """(L, N) unary energies: one label preferred along stretches of points, wrong in places."""
    rng = np.random.default_rng(seed + 2000)
    preferred = (np.arange(points) // 17 + (rng.random(points) < 0.2)) % labels
    unary = rng.normal(2.0, 0.7, (labels, points))
    unary[preferred, np.arange(points)] -= 1.5
    return unary.astype(dtype)


def run_python(
    script: str, *arguments: str, timeout: float = 120.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in a fresh interpreter of this environment; output is captured as text."""
    command = [sys.executable, "-c", script, *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=variables, check=False)
