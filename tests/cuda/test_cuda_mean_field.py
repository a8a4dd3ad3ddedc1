"""Mean field of the CUDA engine, emulated on the CPU: against the CPU engine, option by option, and against itself."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_models import BATCH, DTYPES, POINTS, Model, random
from cuda_native import CudaKernel, CudaLattices, CudaMeanField


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
