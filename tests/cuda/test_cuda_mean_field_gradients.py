"""Gradients of mean field in the CUDA engine, emulated on the CPU: against the CPU engine, finite differences, and itself."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import samples
from cuda_models import BATCH, DTYPES, POINTS, Model, random
from cuda_native import CudaKernel, CudaLattices, CudaMeanField
from native_batch import Kernel, KernelGradient, Lattices, MeanField
from numpy.typing import NDArray

Array = NDArray[Any]

# The matrix of a compatibility multiplies every vertex: closer points, and fewer vertices, where there are many labels.
MANY_LABELS = 100
PARAMETERS = ("compat", "norm_in", "norm_out", "weights")
BOUND = {np.dtype(np.float32): 3e-5, np.dtype(np.float64): 1e-12}
STEP = 1e-5


def all_gradients(kernel: Kernel | CudaKernel) -> KernelGradient:
    """Arrays for every gradient that a kernel has."""
    arrays = (kernel.compat, kernel.norm_in, kernel.norm_out, kernel.lattices.weights)
    return KernelGradient(*(None if array is None else np.full_like(array, -77) for array in arrays))


class Gradients:
    """All gradients of a model, as one dictionary for each engine."""

    def __init__(self, model: Model, *, tolerance: float = 0.0, implicit: bool = False, start: Array | None = None):
        self.model, self.tolerance, self.start = model, tolerance, start
        if model.unary.shape[2] > MANY_LABELS:
            model.features = [features / 5 for features in model.features]
        self.out, self.trace, _ = model.cpu(start)
        if implicit:
            self.trace = np.exp(self.out) if model.options.get("log_output") else self.out
        self.grad = random(*self.out.shape, dtype=self.out.dtype, seed=21)

    def cuda(self, images: slice = slice(None), asked: list[KernelGradient] | None = None) -> dict[str, Array]:
        engine = replace(self.model.cuda_engine(images), tolerance=self.tolerance)
        trace = self.trace[images] if self.trace.ndim == 3 else np.ascontiguousarray(self.trace[:, images])
        wanted = [all_gradients(kernel) for kernel in engine.kernels] if asked is None else asked
        grad_unary, grad_start, steps, moves = engine.gradient(
            self.model.module, self.out[images], trace, self.grad[images], wanted, start=self.start is not None
        )
        stopped = {"steps": steps, "moves": moves} if self.tolerance else {}
        return {**self._results(grad_unary, grad_start, wanted), **stopped}

    def cpu(self) -> dict[str, Array]:
        engine = self.model.cpu_engine()
        wanted = [all_gradients(kernel) for kernel in engine.kernels]
        grad_unary, grad_start, (steps, moves) = engine.gradient(
            self.out, self.trace, self.grad, wanted, start=self.start is not None, tolerance=self.tolerance
        )
        stopped = {"steps": np.array(steps), "moves": np.array(moves)} if self.tolerance else {}
        return {**self._results(grad_unary, grad_start, wanted), **stopped}

    @staticmethod
    def _results(grad_unary: Array, grad_start: Array | None, wanted: list[KernelGradient]) -> dict[str, Array]:
        results = {"unary": grad_unary, "start": grad_start}
        results |= {
            f"{name} of kernel {m}": getattr(entry, name) for m, entry in enumerate(wanted) for name in PARAMETERS
        }
        return {name: array for name, array in results.items() if array is not None}

    def check(self) -> dict[str, Array]:
        """The CUDA engine's, which are the CPU's."""
        got, want = self.cuda(), self.cpu()
        assert got.keys() == want.keys()
        for name, array in want.items():
            if name in ("steps", "moves"):
                continue
            scale = np.abs(array).max()
            assert np.abs(got[name] - array).max() <= BOUND[array.dtype] * max(scale, 1e-3), name
        return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 21, 33, 130, 260, 520])
def test_any_number_of_labels(emulated: ModuleType, labels: int, dtype: Any) -> None:
    Gradients(Model(emulated, labels, dtype, iterations=3)).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kinds", [("diagonal", "potts"), ("matrix", "diagonal"), ("potts", "matrix")])
@pytest.mark.parametrize("labels", [3, 21, 33, 130])
def test_compatibilities(emulated: ModuleType, kinds: tuple[str, str], labels: int, dtype: Any) -> None:
    Gradients(Model(emulated, labels, dtype, kinds, iterations=3)).check()


def test_a_matrix_with_room_for_the_sums_of_one_chunk(emulated: ModuleType) -> None:
    """Where chunks of the usual number of points would be two."""
    features = random(1, 257, 1, dtype=np.float64, seed=1)
    compat = random(730, 730, dtype=np.float64, seed=2, scale=0.02)
    unary, grad = (random(1, 257, 730, dtype=np.float64, seed=seed) for seed in (3, 4))
    judge = MeanField([Kernel(Lattices(features), compat)], 1)
    out, trace, _ = judge.run(unary)
    got, want = ([KernelGradient(compat=np.full_like(compat, -77))] for _ in range(2))
    engine = CudaMeanField([CudaKernel(CudaLattices(emulated, features), compat)], 1)
    engine.gradient(emulated, out, trace, grad, got)
    judge.gradient(out, trace, grad, want)
    assert samples.relative_l2(got[0].compat, want[0].compat) <= 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_output", [False, True])
@pytest.mark.parametrize("iterations", [0, 1, 2, 10])
def test_iterations(emulated: ModuleType, iterations: int, log_output: bool, dtype: Any) -> None:
    Gradients(Model(emulated, 5, dtype, ("matrix", "potts"), iterations=iterations, log_output=log_output)).check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithms_of_probabilities_too_small_for_a_number(emulated: ModuleType, dtype: Any) -> None:
    model = Model(emulated, 21, dtype, log_output=True)
    model.unary *= 60
    assert Gradients(model).out.min() < -100
    Gradients(model).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_start_and_order(emulated: ModuleType, iterations: int, dtype: Any) -> None:
    order = np.random.default_rng(4).permutation(POINTS).astype(np.int32)
    start = np.random.default_rng(5).dirichlet(np.ones(7), (BATCH, POINTS)).astype(dtype)
    model = Model(emulated, 7, dtype, ("matrix", "diagonal"), iterations=iterations, order=order)
    Gradients(model).check()
    got = Gradients(model, start=start).check()
    if iterations == 0:
        assert (got["unary"] == 0).all()


def implicit_model(
    emulated: ModuleType, dtype: Any, kinds: tuple[str, str] = ("potts", "potts"), **options: Any
) -> Model:
    """Whose images come to rest, one later than the other."""
    model = Model(emulated, 5, dtype, kinds, iterations=60, **options)
    for compat in model.compat:
        compat *= 0.5
    model.unary[1] *= 4
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kinds", [("potts", "potts"), ("diagonal", "matrix")])
@pytest.mark.parametrize("log_output", [False, True])
def test_fixed_point_and_tolerance(emulated: ModuleType, log_output: bool, kinds: tuple[str, str], dtype: Any) -> None:
    """An image whose adjoint is small enough adds nothing more, while the other goes on."""
    order = np.random.default_rng(4).permutation(POINTS).astype(np.int32)
    gradients = Gradients(
        implicit_model(emulated, dtype, kinds, order=order, log_output=log_output), tolerance=1e-4, implicit=True
    )
    got, want = gradients.check(), gradients.cpu()
    steps, moves = got["steps"], got["moves"]
    np.testing.assert_array_equal(steps, want["steps"])
    assert steps[0] != steps[1]
    assert steps.min() > 1
    assert steps.max() < 60
    grad, q = gradients.grad, gradients.trace
    total = (grad if log_output else grad * q).sum(2, keepdims=True)
    first = q * total - (grad if log_output else grad * q)
    np.testing.assert_allclose(moves[0], np.abs(first).max((1, 2)), rtol=1e-5)
    for image, step in enumerate(steps):
        assert moves[step, image] <= 1e-4
        assert (moves[:step, image] > 1e-4).all()
        assert (moves[step + 1 :, image] == 0).all()
        np.testing.assert_allclose(moves[step, image], want["moves"][image], rtol=1e-2, atol=1e-7)


def test_a_tolerance_that_stops_at_once(emulated: ModuleType) -> None:
    got = Gradients(implicit_model(emulated, np.float64), tolerance=1e3, implicit=True).check()
    assert got["steps"].tolist() == [0, 0]
    assert (got["compat of kernel 0"] == 0).all()


@pytest.mark.parametrize("kinds", [("potts", "potts"), ("matrix", "diagonal")])
@pytest.mark.parametrize("log_output", [False, True])
def test_finite_differences(emulated: ModuleType, log_output: bool, kinds: tuple[str, str]) -> None:
    """Along a random direction of every gradient, through the CUDA engine's own inference."""
    model = Model(emulated, 5, np.float64, kinds, iterations=3, log_output=log_output)
    gradients = Gradients(model)
    got, engine = gradients.cuda(), model.cuda_engine()

    def check(name: str, array: Array) -> None:
        """array: the parameter, which the engine reads where it lies."""
        direction = np.asarray(random(*array.shape, dtype=np.float64, seed=30)) * (
            1 if name == "unary" else np.abs(array)
        )
        before, ends = array.copy(), []
        for sign in (1, -1):
            array[...] = before + sign * STEP * direction
            ends.append(engine.run(emulated, model.unary)[0])
        array[...] = before
        want = (gradients.grad * (ends[0] - ends[1])).sum() / (2 * STEP)
        size = np.sqrt((got[name] ** 2).sum())
        assert size > 0
        assert abs((got[name] * direction).sum() - want) <= 1e-6 * size, name

    check("unary", model.unary)
    for m, kernel in enumerate(engine.kernels):
        for name in PARAMETERS:
            array = kernel.lattices.weights if name == "weights" else getattr(kernel, name)
            if array is not None:
                check(f"{name} of kernel {m}", array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_image_has_the_bits_of_its_run_alone(emulated: ModuleType, dtype: Any) -> None:
    """And compatibilities get the sum of the images', in double."""
    gradients = Gradients(Model(emulated, 21, dtype, ("matrix", "potts"), iterations=3))
    together = gradients.cuda()
    alone = [gradients.cuda(slice(image, image + 1)) for image in range(BATCH)]
    for name, array in together.items():
        if name.startswith("compat"):
            total = sum(entry[name].astype(np.float64) for entry in alone)
            assert samples.relative_l2(array, total) <= np.finfo(dtype).eps
        else:
            for image in range(BATCH):
                np.testing.assert_array_equal(alone[image][name][0], array[image])


@pytest.mark.parametrize("kinds", [("matrix", "diagonal"), ("potts", "diagonal")])
def test_the_order_of_threads_does_not_show(emulated: ModuleType, kinds: tuple[str, str]) -> None:
    gradients = Gradients(implicit_model(emulated, np.float32, kinds), tolerance=1e-3, implicit=True)
    want = gradients.cuda()
    try:
        for order in (0, 1, 2):
            emulated.set_thread_order(order)
            got = gradients.cuda()
            for name, array in want.items():
                np.testing.assert_array_equal(got[name], array)
    finally:
        emulated.set_thread_order(0)


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_gradient_does_not_depend_on_what_else_is_asked_for(emulated: ModuleType, parameter: str) -> None:
    """Bit for bit, and one kernel alone can ask."""
    gradients = Gradients(Model(emulated, 5, np.float32, ("matrix", "potts")))
    want = gradients.cuda()
    for m, kernel in enumerate(gradients.model.cuda_engine().kernels):
        asked = [KernelGradient() for _ in range(2)]
        asked[m] = KernelGradient(**{parameter: getattr(all_gradients(kernel), parameter)})
        for name, array in gradients.cuda(asked=asked).items():
            np.testing.assert_array_equal(array, want[name])


def test_no_kernels(emulated: ModuleType) -> None:
    unary, grad = (random(2, 33, 4, dtype=np.float64, seed=seed) for seed in (1, 2))
    field = CudaMeanField([], iterations=3)
    q, trace, *_ = field.run(emulated, unary)
    got = field.gradient(emulated, q, trace, grad, [])[0]
    np.testing.assert_allclose(got, q * ((grad * q).sum(2, keepdims=True) - grad), rtol=1e-12, atol=1e-15)


def test_terms_that_do_not_fit(emulated: ModuleType) -> None:
    kernel = CudaKernel(CudaLattices(emulated, random(2, 33, 2, dtype=np.float32, seed=0)), np.ones((), np.float32))
    grad = random(2, 33, 4, dtype=np.float32, seed=1)
    with pytest.raises(ValueError, match="terms must be at most 16 on CUDA; got 17"):
        CudaMeanField([kernel] * 17, 1).gradient(emulated, grad, grad, grad, [KernelGradient()] * 17)
    with pytest.raises(ValueError, match="structure must be what lattice_build returned for 1 images of 33 points"):
        CudaMeanField([kernel], 1).gradient(emulated, grad[:1], grad[:1], grad[:1], [KernelGradient()])


def test_each_option_is_needed(emulated: ModuleType) -> None:
    """So none of them is a leftover."""
    zeros, result, memory = np.zeros((1, 3, 2)), np.zeros((1, 3, 2)), np.zeros(4096, np.uint8)
    names = ("order", "iterations", "trace", "steps", "moves", "grad_start")
    options: dict[str, Any] = dict.fromkeys(names, 0) | {"trace_fixed": False, "log_output": False, "tolerance": 0.0}
    options |= {"output": zeros.ctypes.data, "grad_output": zeros.ctypes.data, "grad_unary": result.ctypes.data}
    options["workspace"] = memory.ctypes.data
    emulated.mean_field_gradient_f64((0, 0), (1, 3, 2), [], options)
    for missing in options:
        fewer = {key: value for key, value in options.items() if key != missing}
        with pytest.raises(KeyError, match=missing):
            emulated.mean_field_gradient_f64((0, 0), (1, 3, 2), [], fewer)
