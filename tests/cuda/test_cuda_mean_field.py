"""Mean field of the CUDA engine, emulated on the CPU: against the CPU engine, option by option, and against itself."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import samples
from cuda_native import CudaKernel, CudaLattices, CudaMeanField
from native_batch import Kernel, Lattices, MeanField
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES = [np.float32, np.float64]
BATCH, POINTS = 2, 300


def random(*shape: int, dtype: Any, seed: int, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(dtype)


def compatibility(kind: str, labels: int, dtype: Any) -> Array:
    shape = {"potts": (), "diagonal": (labels,), "matrix": (labels, labels)}[kind]
    return np.asarray(np.random.default_rng(7).uniform(0.2, 1, shape) * (1 if kind == "potts" else -1), dtype)


class Model:
    """The same two kernels, of two and of five dimensions, for both engines."""

    def __init__(
        self, emulated: ModuleType, labels: int, dtype: Any, kinds: tuple[str, str] = ("potts", "potts"), **options: Any
    ):
        self.module, self.options = emulated, {"iterations": 4, **options}
        self.watched = {key: self.options.pop(key) for key in ("damping", "tolerance") if key in self.options}
        self.unary = random(BATCH, POINTS, labels, dtype=dtype, seed=3, scale=2.0)
        self.features = [random(BATCH, POINTS, dims, dtype=dtype, seed=dims, scale=0.8) for dims in (2, 5)]
        self.compat = [compatibility(kind, labels, dtype) for kind in kinds]
        self.norms = [np.abs(random(BATCH, POINTS, dtype=dtype, seed=seed)) * 0.05 + 0.02 for seed in (8, 9, 10)]
        self.norms = [(self.norms[0], None), (self.norms[1], self.norms[2])]

    def cuda(self, start: Array | None = None, images: slice = slice(None)) -> tuple[Array, ...]:
        kernels = []
        for features, compat, norms in zip(self.features, self.compat, self.norms, strict=True):
            chosen = [None if norm is None else norm[images] for norm in norms]
            kernels.append(CudaKernel(CudaLattices(self.module, features[images]), compat, *chosen))
        return CudaMeanField(kernels, **self.options, **self.watched).run(self.module, self.unary[images], start)

    def cpu(self, start: Array | None = None) -> tuple[Array, Array, Any]:
        kernels = [
            Kernel(Lattices(features), compat, *norms)
            for features, compat, norms in zip(self.features, self.compat, self.norms, strict=True)
        ]
        return MeanField(kernels, **self.options).run(self.unary, start, **self.watched)

    def check(self, start: Array | None = None, tolerance: float = 1.0) -> tuple[Array, ...]:
        """Output and trace as on the CPU."""
        got, want = self.cuda(start), self.cpu(start)
        bound = tolerance * samples.TOLERANCE[self.unary.dtype]
        assert samples.scaled_error(got[0], want[0]) <= bound
        if not self.watched.get("tolerance"):
            assert samples.scaled_error(got[1], want[1]) <= bound
        return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 21, 24, 33, 130, 260, 520])
def test_any_number_of_labels(emulated: ModuleType, labels: int, dtype: Any) -> None:
    Model(emulated, labels, dtype).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kinds", [("diagonal", "potts"), ("matrix", "diagonal"), ("potts", "matrix")])
@pytest.mark.parametrize("labels", [3, 21, 140])
def test_compatibilities(emulated: ModuleType, kinds: tuple[str, str], labels: int, dtype: Any) -> None:
    Model(emulated, labels, dtype, kinds).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("iterations", [0, 1, 2, 10])
def test_log_output(emulated: ModuleType, iterations: int, dtype: Any) -> None:
    model = Model(emulated, 21, dtype, iterations=iterations, log_output=True)
    model.unary *= 60  # probabilities that are too small for a number
    got = model.check()
    assert got[0].min() < -100


@pytest.mark.parametrize("dtype", DTYPES)
def test_start_and_order(emulated: ModuleType, dtype: Any) -> None:
    order = np.random.default_rng(4).permutation(POINTS).astype(np.int32)
    start = np.random.default_rng(5).dirichlet(np.ones(7), (BATCH, POINTS)).astype(dtype)
    Model(emulated, 7, dtype, order=order).check()
    Model(emulated, 7, dtype, order=order).check(start)
    unchanged = Model(emulated, 7, dtype, order=order, iterations=0).cuda(start)[0]
    np.testing.assert_array_equal(unchanged, start)


@pytest.mark.parametrize("labels", [5, 520])
@pytest.mark.parametrize("dtype", DTYPES)
def test_damping(emulated: ModuleType, labels: int, dtype: Any) -> None:
    Model(emulated, labels, dtype, damping=0.4).check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tolerance_image_by_image(emulated: ModuleType, dtype: Any) -> None:
    """An image that has come to rest keeps what it has, while the other goes on."""
    model = Model(emulated, 5, dtype, iterations=40, damping=0.3, tolerance=1e-3)
    model.unary[1] *= 100
    out, _, steps, changes = model.check()
    want_steps, want_changes = model.cpu()[2]
    assert steps.tolist() == want_steps
    assert steps[0] != steps[1]
    assert steps.max() < 40
    for image, step in enumerate(steps):
        assert changes[step - 1, image] <= 1e-3
        assert (changes[: step - 1, image] > 1e-3).all()
        assert (changes[step:, image] == 0).all()
        np.testing.assert_allclose(changes[step - 1, image], want_changes[image], rtol=1e-2, atol=1e-5)
        exact = Model(emulated, 5, dtype, iterations=int(step), damping=0.3)
        exact.unary[1] *= 100
        np.testing.assert_array_equal(exact.cuda()[0][image], out[image])


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_image_has_the_bits_of_its_run_alone(emulated: ModuleType, dtype: Any) -> None:
    model = Model(emulated, 21, dtype, ("matrix", "potts"))
    together = model.cuda()[0]
    for image in range(BATCH):
        np.testing.assert_array_equal(model.cuda(images=slice(image, image + 1))[0][0], together[image])


def test_the_order_of_threads_does_not_show(emulated: ModuleType) -> None:
    model = Model(emulated, 21, np.float32, ("matrix", "diagonal"), damping=0.2, tolerance=1e-4)
    want = model.cuda()
    try:
        for order in (0, 1, 2):
            emulated.set_thread_order(order)
            for got, expected in zip(model.cuda(), want, strict=True):
                np.testing.assert_array_equal(got, expected)
    finally:
        emulated.set_thread_order(0)


def test_no_kernels(emulated: ModuleType) -> None:
    unary = random(2, 33, 4, dtype=np.float64, seed=1)
    got = CudaMeanField([], iterations=3).run(emulated, unary)[0]
    want = np.exp(-unary) / np.exp(-unary).sum(2, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_terms_that_do_not_fit(emulated: ModuleType) -> None:
    kernel = CudaKernel(CudaLattices(emulated, random(2, 33, 2, dtype=np.float32, seed=0)), np.ones((), np.float32))
    unary = random(2, 33, 4, dtype=np.float32, seed=1)
    with pytest.raises(ValueError, match="terms must be at most 16 on CUDA; got 17"):
        CudaMeanField([kernel] * 17, iterations=1).run(emulated, unary)
    with pytest.raises(ValueError, match="structure must be what lattice_build returned for 1 images of 33 points"):
        CudaMeanField([kernel], iterations=1).run(emulated, unary[:1])


def test_no_labels(emulated: ModuleType) -> None:
    kernel = CudaKernel(CudaLattices(emulated, random(2, 33, 2, dtype=np.float32, seed=0)), np.ones((), np.float32))
    got = CudaMeanField([kernel], iterations=2, tolerance=0.1).run(emulated, np.empty((2, 33, 0), np.float32))
    assert got[0].shape == (2, 33, 0)
    assert got[2].tolist() == [1, 1]
