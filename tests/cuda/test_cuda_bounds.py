"""max_vertices in the CUDA engine, emulated on the CPU: nobody looks at the header in between. Every image is either what it is
without a bound, bit for bit, or NaN throughout; and the header tells.

Run these under AddressSanitizer too (`tools/sanitize tests/cuda`): what is out of bounds need not show in a number."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_native import CudaKernel, CudaLattices, CudaMeanField
from numpy.typing import NDArray

Array = NDArray[Any]

BATCH, POINTS, LABELS = 4, 50, 5


def random(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype(np.float32)


@pytest.fixture(params=[0, 1, 2], autouse=True)
def thread_order(emulated: ModuleType, request: pytest.FixtureRequest) -> Iterator[None]:
    """In ascending order, in descending order and shuffled: who finds the table full depends on it."""
    emulated.set_thread_order(request.param)
    yield
    emulated.set_thread_order(0)


class Results:
    """All that a lattice is used for, (B, ...) each."""

    def __init__(self, module: ModuleType, features: Array, max_vertices: int = 0):
        batch, points, _ = features.shape
        self.lattices = CudaLattices(module, features, max_vertices=max_vertices)
        inputs, grad = random(batch, points, LABELS, seed=1), random(batch, points, LABELS, seed=2)
        self.everything = [
            self.lattices.weights,
            self.lattices.filter(inputs),
            self.lattices.filter(inputs, transpose=True),
            self.lattices.filter(inputs.astype(np.float16)),
            self.lattices.weight_gradient(inputs, grad),
        ]
        norm = np.full((batch, points), 0.1, np.float32)
        options: list[dict[str, Any]] = [{}, {"log_output": True}, {"damping": 0.3, "tolerance": 1e-7}]
        for compat, chosen in zip((np.ones(()), -np.ones(LABELS), -np.eye(LABELS)), options, strict=True):
            kernel = CudaKernel(self.lattices, compat.astype(np.float32), norm, norm)
            self.everything.append(CudaMeanField([kernel], iterations=3, **chosen).run(module, inputs)[0])

    def state(self, image: int, want: Results) -> str:
        """right, nan or wrong."""
        pairs = [(got[image], expected[image]) for got, expected in zip(self.everything, want.everything, strict=True)]
        if all(np.array_equal(got, expected) for got, expected in pairs):
            return "right"
        return "nan" if all(np.isnan(got).all() for got, _ in pairs) else "wrong"


def check(module: ModuleType, features: Array, max_vertices: int) -> list[str]:
    """The state of every image, none of them wrong. The rows are vertices that exist."""
    want, got = Results(module, features), Results(module, features, max_vertices)
    rows, counts = got.lattices.rows, got.lattices.num_vertices
    assert min(counts) >= 0
    assert rows.min() >= 0
    assert rows.max() < sum(counts) <= max_vertices
    states = [got.state(image, want) for image in range(len(features))]
    assert "wrong" not in states
    for state, count, true_count in zip(states, counts, want.lattices.num_vertices, strict=True):
        assert state == "nan" or count == true_count
    return states


@pytest.mark.parametrize("spare", [0, 1, 5000])
def test_a_bound_that_suffices(emulated: ModuleType, spare: int) -> None:
    """Also one over the number of contributions, 1200."""
    features = random(BATCH, POINTS, 5, seed=0)
    vertices = CudaLattices(emulated, features).check()
    assert check(emulated, features, vertices + spare) == ["right"] * BATCH
    assert CudaLattices(emulated, features, max_vertices=vertices + spare).check() == vertices


@pytest.mark.parametrize(("ends", "more"), [(0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (2, -1), (2, 0), (2, 1), (3, -1)])
def test_images_within_the_bound_are_right(emulated: ModuleType, ends: int, more: int) -> None:
    """The bound lies where an image ends, or one vertex from there; the table is not full."""
    features = random(BATCH, POINTS, 5, seed=0)
    features[1:] *= 0.2
    counts = CudaLattices(emulated, features).num_vertices
    bound = sum(counts[: ends + 1]) + more
    assert sum(counts) < 2 * bound
    right = ends if more < 0 else ends + 1
    assert check(emulated, features, bound) == ["right"] * right + ["nan"] * (BATCH - right)
    with pytest.raises(
        ValueError, match=f"max_vertices must not be less than .*; got {bound}, and there are {sum(counts)}"
    ):
        CudaLattices(emulated, features, max_vertices=bound).check()


@pytest.mark.parametrize("bound", [1, 2, 31, 32, 33, 150])
def test_a_table_that_is_full(emulated: ModuleType, bound: int) -> None:
    """Far more vertices than slots: corners of any image find no place, also of those that would have been within the bound."""
    features = random(BATCH, POINTS, 5, seed=0)
    assert CudaLattices(emulated, features).check() > 512
    assert check(emulated, features, bound)[-1] == "nan"
    with pytest.raises(ValueError, match=rf"max_vertices must not be less than .*; got {bound}, .* or more\. Give"):
        CudaLattices(emulated, features, max_vertices=bound).check()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(emulated: ModuleType, bad: float) -> None:
    features = random(BATCH, POINTS, 2, seed=0)
    want = Results(emulated, features)
    features[1, 37, 1] = features[2, 3, 0] = bad
    message = rf"image 1: features must be finite; got {bad} at point 37, dimension 1\. Check"
    with pytest.raises(ValueError, match=message):
        CudaLattices(emulated, features)
    got = Results(emulated, features, 10000)
    assert [got.state(image, want) for image in range(BATCH)] == ["right", "nan", "nan", "right"]
    with pytest.raises(ValueError, match=message):
        got.lattices.check()


def test_features_that_are_too_large(emulated: ModuleType) -> None:
    """Then no layout of the keys holds the batch: all of it is NaN."""
    features = random(BATCH, POINTS, 2, seed=0)
    want = Results(emulated, features)
    features[1, 7] = 1e9
    message = r"image 1: features must keep lattice coordinates below 2\^30; got 2\.\d+e\+09"
    with pytest.raises(ValueError, match=message):
        CudaLattices(emulated, features)
    got = Results(emulated, features, 1000)
    assert [got.state(image, want) for image in range(BATCH)] == ["nan"] * BATCH
    with pytest.raises(ValueError, match=message):
        got.lattices.check()


def test_keys_that_are_too_narrow(emulated: ModuleType) -> None:
    """Nobody looks and builds again with wider ones: all is NaN, and the header tells."""
    features = random(BATCH, POINTS, 9, seed=0)
    want = Results(emulated, features)
    features[:, ::2] += 1e3
    got = Results(emulated, features, 10000)
    assert [got.state(image, want) for image in range(BATCH)] == ["nan"] * BATCH
    with pytest.raises(ValueError, match="keys of at most 1 words where max_vertices is given; got"):
        got.lattices.check()
