"""Parts of the CUDA engine by themselves: 16-bit numbers, layouts of keys, sizes of grids (units_test.cpp)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]


def test_the_parts_themselves(emulated_folder: Path) -> None:
    done = subprocess.run([emulated_folder / "units_test"], capture_output=True, text=True, check=False, timeout=20)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 13
    assert all(line.endswith(": ok") for line in lines)


def converted(folder: Path, mode: str, numbers: Array, dtype: Any) -> Array:
    done = subprocess.run([folder / "units_test", mode], input=numbers.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype)


def floats() -> Array:
    """Of every exponent and sign: mantissas at random, at and around the ties of both 16-bit formats, and what is special."""
    rng = np.random.default_rng(0)
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = np.concatenate([(upper[:, None] | lower).ravel(), rng.integers(0, 2**32, 10**6, dtype=np.uint32)])
    bounds = np.array([65504, 65519.996, 65520, 65535, 65536, 2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24], np.float32)
    around = [bounds, np.nextafter(bounds, np.float32(0)), np.nextafter(bounds, np.float32(np.inf))]
    return np.concatenate([bits.view(np.float32), *around, *(-numbers for numbers in around)])


def same_bits(got: Array, want: Array) -> None:
    """Of 16-bit or 32-bit numbers of any kind; NaN is NaN."""
    unsigned = np.dtype(f"u{want.itemsize}")
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(unsigned)[~nan], want.view(unsigned)[~nan])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered in cast")
def test_float16_is_numpys(emulated_folder: Path) -> None:
    numbers = floats()
    same_bits(converted(emulated_folder, "f16", numbers, np.float16), numbers.astype(np.float16))
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    same_bits(converted(emulated_folder, "from_f16", every, np.float32), every.astype(np.float32))


def test_bfloat16_is_torchs(emulated_folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="judges bfloat16 (pip install '.[torch]')")
    numbers = floats()
    want = torch.from_numpy(numbers).bfloat16()
    got = converted(emulated_folder, "bf16", numbers, np.uint16)
    same_bits((got.astype(np.uint32) << 16).view(np.float32), want.float().numpy())
    every = np.arange(2**16, dtype=np.uint16)
    widened = torch.from_numpy(every.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    same_bits(converted(emulated_folder, "from_bf16", every, np.float32), widened)
