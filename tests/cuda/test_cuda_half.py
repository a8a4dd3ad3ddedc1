"""16-bit values in the CUDA engine's filter, emulated on the CPU: what the float32 filter gives, rounded once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_native import CudaLattices, poisoned
from numpy.typing import NDArray

Array = NDArray[Any]

FORMATS = ["float16", "bfloat16"]


def features(batch: int, points: int, dims: int) -> Array:
    return np.random.default_rng(0).normal(0, 1.5, (batch, points, dims)).astype(np.float32)


def rounded(numbers: Array, name: str) -> Array:
    """To nearest, ties to even: float16, or the bits of bfloat16 as uint16. Finite numbers."""
    if name == "float16":
        return numbers.astype(np.float16)
    bits = numbers.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(numbers: Array) -> Array:
    if numbers.dtype == np.float16:
        return numbers.astype(np.float32)
    return (numbers.astype(np.uint32) << 16).view(np.float32)


def values(name: str, *shape: int) -> Array:
    return rounded(np.random.default_rng(1).normal(0, 1, shape).astype(np.float32), name)


def check(lattices: CudaLattices, inputs: Array, name: str) -> None:
    for transpose in (False, True):
        got = lattices.filter(inputs, transpose=transpose)
        want = rounded(lattices.filter(widened(inputs), transpose=transpose), name)
        np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
        assert np.abs(widened(got)).max() > 0.1


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 8, 21, 24, 150])
@pytest.mark.parametrize("dims", [2, 5])
def test_every_kind_of_row(emulated: ModuleType, dims: int, channels: int, name: str) -> None:
    check(CudaLattices(emulated, features(2, 257, dims)), values(name, 2, 257, channels), name)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("offset", [1, 2, 3, 4])
def test_rows_that_are_not_aligned(emulated: ModuleType, offset: int, name: str) -> None:
    """Of whole vectors, beginning at any 16-bit number."""
    inputs = values(name, 2, 100, 8)
    memory = poisoned(inputs.size + offset, inputs.dtype)
    moved = memory[offset:].reshape(inputs.shape)
    moved[...] = inputs
    lattices = CudaLattices(emulated, features(2, 100, 3))
    np.testing.assert_array_equal(lattices.filter(moved), lattices.filter(inputs))
    check(lattices, moved, name)


@pytest.mark.parametrize("name", FORMATS)
def test_sums_are_taken_in_float(emulated: ModuleType, name: str) -> None:
    """4096 ones in one vertex: a sum of 16-bit numbers would stop at 2048, or 256."""
    lattices = CudaLattices(emulated, np.zeros((1, 4096, 2), np.float32))
    got = widened(lattices.filter(rounded(np.ones((1, 4096, 1), np.float32), name)))
    want = lattices.filter(np.ones((1, 4096, 1), np.float32))
    assert want.min() > 2000
    np.testing.assert_allclose(got, want, rtol=2.0**-8)


def test_what_a_format_cannot_hold(emulated: ModuleType) -> None:
    """Infinity where a result is over 65504, and only there; NaN stays NaN."""
    inputs = np.full((1, 300, 1), 60000, np.float16)
    lattices = CudaLattices(emulated, np.zeros((1, 300, 2), np.float32))
    assert np.isinf(lattices.filter(inputs)).all()
    inputs[:] = np.nan
    assert np.isnan(lattices.filter(inputs)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_each_image_has_the_bits_of_its_run_alone(emulated: ModuleType, name: str) -> None:
    many, inputs = features(3, 300, 5), values(name, 3, 300, 21)
    together = CudaLattices(emulated, many).filter(inputs)
    for image in range(3):
        one = slice(image, image + 1)
        np.testing.assert_array_equal(CudaLattices(emulated, many[one]).filter(inputs[one]), together[one])
