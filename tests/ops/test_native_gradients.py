"""Mean field of a batch and its gradients, in float64: against the oracle, single images and finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import samples
from native_batch import Kernel, KernelGradient, Lattices, MeanField, address, native
from numpy.typing import NDArray

import deeplab_crf

STEP = 1e-5


def deviates(*shape: int, seed: int = 1) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=shape)


def compatibility(kind: str, labels: int, seed: int = 5) -> NDArray[Any]:
    """Near Potts, without symmetries."""
    rng = np.random.default_rng(seed)
    if kind == "potts":
        return np.array(1.3)
    if kind == "diagonal":
        return -rng.uniform(0.5, 1.5, labels)
    return rng.uniform(-0.4, 0.4, (labels, labels)) - 0.8 * np.eye(labels)


def normalisers(lattices: Lattices, normalization: str) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Norms (B, N) of the lattices."""
    batch, points, _ = lattices.rows.shape
    sums = lattices.filter(np.ones((batch, points, 1)))[:, :, 0] + 1e-20
    return {
        "none": (None, None),
        "before": (1 / sums, None),
        "after": (None, 1 / sums),
        "symmetric": (np.sqrt(1 / sums), np.sqrt(1 / sums)),
    }[normalization]


def features(batch: int, points: int, dims: int, seed: int) -> NDArray[Any]:
    return np.stack([samples.features(points, dims, seed + image, np.float64) for image in range(batch)])


def kernel_of(
    batch: int, points: int, labels: int, *, dims: int = 2, kind: str = "potts", norm: str = "symmetric"
) -> Kernel:
    """A kernel whose norms are arrays of their own."""
    lattices = Lattices(features(batch, points, dims, seed=dims))
    norm_in, norm_out = normalisers(lattices, norm)
    return Kernel(lattices, compatibility(kind, labels), norm_in, None if norm_out is None else norm_out.copy())


def unary_of(batch: int, points: int, labels: int) -> NDArray[Any]:
    return np.stack([samples.energies(labels, points, image, np.float64).T for image in range(batch)]).copy()


def with_threads(field: MeanField, threads: int) -> MeanField:
    kernels = [replace(kernel, lattices=Lattices(kernel.lattices.features, threads)) for kernel in field.kernels]
    return replace(field, kernels=kernels, threads=threads)


def all_gradients(kernel: Kernel) -> KernelGradient:
    """Arrays for every gradient that a kernel has."""
    return KernelGradient(
        np.full_like(kernel.compat, np.nan),
        None if kernel.norm_in is None else np.full_like(kernel.norm_in, np.nan),
        None if kernel.norm_out is None else np.full_like(kernel.norm_out, np.nan),
        np.full_like(kernel.lattices.weights, np.nan),
    )


PARAMETERS = ("compat", "norm_in", "norm_out", "weights")


def moved(kernel: Kernel, name: str, by: NDArray[Any]) -> Kernel:
    """The kernel with one of its parameters moved."""
    if name == "weights":
        lattices = replace_arrays(kernel.lattices, kernel.lattices.weights + by)
        return replace(kernel, lattices=lattices)
    return replace(kernel, **{name: np.asarray(getattr(kernel, name) + by)})


def replace_arrays(lattices: Lattices, weights: NDArray[Any]) -> Lattices:
    copy = Lattices.__new__(Lattices)
    copy.__dict__.update(lattices.__dict__)
    copy.weights = weights
    return copy


def check_gradients(field: MeanField, unary: NDArray[Any], start: NDArray[Any] | None = None) -> None:
    """Every gradient against central differences along a random direction of its own."""
    grad = deviates(*unary.shape, seed=9)
    out, trace, _ = field.run(unary, start)
    asked = [all_gradients(kernel) for kernel in field.kernels]
    grad_unary, grad_start, _ = field.gradient(out, trace, grad, asked, start=start is not None)

    def check(name: str, got: NDArray[Any], there: NDArray[Any], back: NDArray[Any], direction: NDArray[Any]) -> None:
        want = (grad * (there - back)).sum() / (2 * STEP)
        scale = np.sqrt((got**2).sum())
        assert abs((got * direction).sum() - want) <= 1e-6 * max(scale, 1e-3), name

    along = deviates(*unary.shape, seed=10)
    ends = [field.run(unary + sign * STEP * along, start)[0] for sign in (1, -1)]
    check("unary", grad_unary, *ends, along)
    if start is not None:
        assert grad_start is not None
        ends = [field.run(unary, start + sign * STEP * along)[0] for sign in (1, -1)]
        check("start", grad_start, *ends, along)
    for m, kernel in enumerate(field.kernels):
        for name in PARAMETERS:
            got = getattr(asked[m], name)
            if got is None:
                continue
            direction = deviates(*got.shape, seed=11 + m) * (np.abs(getattr(kernel, name, 1.0)))
            ends = []
            for sign in (1, -1):
                kernels = list(field.kernels)
                kernels[m] = moved(kernel, name, sign * STEP * direction)
                ends.append(replace(field, kernels=kernels).run(unary, start)[0])
            check(f"{name} of kernel {m}", got, *ends, direction)


@pytest.mark.parametrize("normalization", oracle.NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "matrix"])
def test_forward_against_the_oracle(kind: str, normalization: str) -> None:
    batch, points, labels = 2, 300, 5
    kernel = kernel_of(batch, points, labels, kind=kind, norm=normalization)
    unary = unary_of(batch, points, labels)
    for log_output in (False, True):
        out, trace, done = MeanField([kernel], 4, log_output=log_output).run(unary)
        for image in range(batch):
            lattice = oracle.Lattice(kernel.lattices.features[image])
            judge = oracle.MeanField(unary[image].T, [(lattice, kernel.compat, normalization)])
            want = judge.run(4).T
            np.testing.assert_allclose(out[image], np.log(want) if log_output else want, rtol=1e-10, atol=1e-12)
            for t in range(4):
                np.testing.assert_allclose(trace[t, image], judge.run(t).T, rtol=1e-10, atol=1e-12)
        assert done[0] == [4, 4]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_image_has_the_bits_of_its_own_inference(threads: int) -> None:
    batch, points, labels = 3, 9000, 4
    field = MeanField([kernel_of(batch, points, labels), kernel_of(batch, points, labels, dims=5, kind="matrix")], 3)
    unary = unary_of(batch, points, labels)
    out, _, _ = with_threads(field, threads).run(unary)
    for image in range(batch):
        engine = deeplab_crf.MeanField(points, labels, dtype=np.float64)
        for kernel in field.kernels:
            compat = float(kernel.compat) if kernel.compat.ndim == 0 else kernel.compat
            engine.add_kernel(kernel.lattices.features[image].T, compat)
        np.testing.assert_array_equal(out[image].T, engine.inference(unary[image].T, 3).probabilities)


@pytest.mark.parametrize("log_output", [False, True])
@pytest.mark.parametrize("normalization", oracle.NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "matrix"])
def test_gradients_of_every_compatibility_and_normalisation(kind: str, normalization: str, log_output: bool) -> None:
    kernel = kernel_of(2, 200, 5, kind=kind, norm=normalization)
    check_gradients(MeanField([kernel], 4, log_output=log_output), unary_of(2, 200, 5))


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 9])
def test_gradients_of_lattices_of_every_dimension(dims: int) -> None:
    check_gradients(MeanField([kernel_of(1, 300, 3, dims=dims)], 3), unary_of(1, 300, 3))


@pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 8, 9, 21, 24, 25, 70])
@pytest.mark.parametrize("kind", ["potts", "diagonal", "matrix"])
def test_gradients_of_every_label_count(labels: int, kind: str) -> None:
    check_gradients(MeanField([kernel_of(1, 90, labels, kind=kind)], 2, log_output=True), unary_of(1, 90, labels))


@pytest.mark.parametrize("points", [1, 2, 15, 16, 17, 33])
def test_gradients_next_to_an_edge_of_blocks(points: int) -> None:
    check_gradients(MeanField([kernel_of(2, points, 3)], 3), unary_of(2, points, 3))


def image_like(batch: int, points: int, labels: int, iterations: int, **settings: Any) -> MeanField:
    """The kernels of an image, and one with a matrix."""
    kernels = [
        kernel_of(batch, points, labels),
        kernel_of(batch, points, labels, dims=5),
        kernel_of(batch, points, labels, dims=3, kind="matrix", norm="after"),
    ]
    return MeanField(kernels, iterations, **settings)


@pytest.mark.parametrize("log_output", [False, True])
@pytest.mark.parametrize("kernels", [1, 2, 3])
def test_gradients_over_several_chunks_in_another_order(kernels: int, log_output: bool) -> None:
    points = 9000
    order = np.random.default_rng(3).permutation(points).astype(np.int32)
    field = image_like(1, points, 4, 3, log_output=log_output, order=order)
    check_gradients(replace(field, kernels=field.kernels[:kernels]), unary_of(1, points, 4))


@pytest.mark.parametrize("iterations", [0, 1, 2, 8])
def test_gradients_of_every_number_of_iterations(iterations: int) -> None:
    check_gradients(image_like(2, 150, 4, iterations), unary_of(2, 150, 4))


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_gradients_from_a_given_start(iterations: int) -> None:
    start = np.random.default_rng(4).dirichlet(np.ones(4), (2, 150))
    check_gradients(image_like(2, 150, 4, iterations), unary_of(2, 150, 4), start)


def test_iterations_in_two_parts_have_the_gradients_of_the_whole() -> None:
    """What recomputing from kept beliefs does."""
    unary, grad = unary_of(1, 400, 4), deviates(1, 400, 4)
    whole, first = image_like(1, 400, 4, 5), image_like(1, 400, 4, 2)
    second = replace(first, iterations=3)
    nothing = [KernelGradient() for _ in whole.kernels]
    out, trace, _ = whole.run(unary)
    want, _, _ = whole.gradient(out, trace, grad, nothing)
    middle, early, _ = first.run(unary)
    end, late, _ = second.run(unary, middle)
    np.testing.assert_array_equal(end, out)
    of_second, of_middle, _ = second.gradient(end, late, grad, nothing, start=True)
    assert of_middle is not None
    of_first, _, _ = first.gradient(middle, early, of_middle, nothing)
    np.testing.assert_allclose(of_first + of_second, want, rtol=1e-12, atol=1e-14)


def test_gradients_at_a_fixed_point_are_those_of_many_iterations() -> None:
    unary, grad = unary_of(2, 200, 4), deviates(2, 200, 4)
    field = image_like(2, 200, 4, 120)
    for kernel in field.kernels:
        kernel.compat *= 0.3
    out, trace, _ = field.run(unary)
    assert np.abs(trace[-1] - out).max() < 1e-14
    want, got = ([all_gradients(kernel) for kernel in field.kernels] for _ in range(2))
    want_unary, _, done = field.gradient(out, trace, grad, want)
    assert done[0] == [120, 120]
    assert np.isnan(done[1]).all()
    got_unary, _, done = field.gradient(out, out, grad, got, tolerance=1e-12)
    assert all(1 < steps < 120 for steps in done[0])
    assert all(0 <= move <= 1e-12 for move in done[1])
    np.testing.assert_allclose(got_unary, want_unary, rtol=1e-8, atol=1e-9)
    for m in range(3):
        for name in PARAMETERS:
            if getattr(want[m], name) is not None:
                np.testing.assert_allclose(getattr(got[m], name), getattr(want[m], name), rtol=1e-7, atol=1e-8)


def test_a_gradient_does_not_depend_on_what_else_is_asked_for() -> None:
    field, unary, grad = image_like(2, 150, 4, 3), unary_of(2, 150, 4), deviates(2, 150, 4)
    out, trace, _ = field.run(unary)
    together = [all_gradients(kernel) for kernel in field.kernels]
    want, _, _ = field.gradient(out, trace, grad, together)
    for name in PARAMETERS:
        alone = [KernelGradient() for _ in field.kernels]
        for one, all_of_it in zip(alone, together, strict=True):
            array = getattr(all_of_it, name)
            setattr(one, name, None if array is None else np.full_like(array, np.nan))
        got, _, _ = field.gradient(out, trace, grad, alone)
        np.testing.assert_array_equal(got, want)
        for one, all_of_it in zip(alone, together, strict=True):
            if getattr(one, name) is not None:
                np.testing.assert_array_equal(getattr(one, name), getattr(all_of_it, name))


def test_one_kernel_alone_can_ask_for_weights() -> None:
    """The others' messages are not computed again, nor is there room for them."""
    field, unary, grad = image_like(2, 150, 4, 3), unary_of(2, 150, 4), deviates(2, 150, 4)
    out, trace, _ = field.run(unary)
    together = [all_gradients(kernel) for kernel in field.kernels]
    field.gradient(out, trace, grad, together)
    for m, kernel in enumerate(field.kernels):
        alone = [KernelGradient() for _ in field.kernels]
        alone[m].weights = np.full_like(kernel.lattices.weights, np.nan)
        field.gradient(out, trace, grad, alone)
        np.testing.assert_array_equal(alone[m].weights, together[m].weights)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_number_of_threads_does_not_show(batch: int) -> None:
    points = 9000
    field, unary, grad = image_like(batch, points, 4, 2), unary_of(batch, points, 4), deviates(batch, points, 4)
    results = []
    for threads in (1, 2, 3):
        ours = with_threads(field, threads)
        asked = [all_gradients(kernel) for kernel in ours.kernels]
        out, trace, _ = ours.run(unary)
        grad_unary, _, _ = ours.gradient(out, trace, grad, asked)
        arrays = [getattr(entry, name) for entry in asked for name in PARAMETERS]
        results.append([out, trace, grad_unary, *(array for array in arrays if array is not None)])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_each_image_has_the_gradients_of_its_own() -> None:
    """Bit for bit; compatibilities' are their sums."""
    field, unary, grad = image_like(3, 200, 4, 3), unary_of(3, 200, 4), deviates(3, 200, 4)
    out, trace, _ = field.run(unary)
    asked = [all_gradients(kernel) for kernel in field.kernels]
    together, _, _ = field.gradient(out, trace, grad, asked)
    sums = [np.zeros_like(kernel.compat) for kernel in field.kernels]
    for image in range(3):
        one = slice(image, image + 1)
        kernels = [
            Kernel(
                Lattices(kernel.lattices.features[one]),
                kernel.compat,
                None if kernel.norm_in is None else kernel.norm_in[one],
                None if kernel.norm_out is None else kernel.norm_out[one],
            )
            for kernel in field.kernels
        ]
        alone = replace(field, kernels=kernels)
        ours = [all_gradients(kernel) for kernel in kernels]
        own, _, _ = alone.gradient(out[one], np.ascontiguousarray(trace[:, one]), grad[one], ours)
        np.testing.assert_array_equal(own, together[one])
        for m, entry in enumerate(ours):
            sums[m] += entry.compat
            for name in PARAMETERS[1:]:
                if getattr(entry, name) is not None:
                    np.testing.assert_array_equal(getattr(entry, name), getattr(asked[m], name)[one])
    for m, total in enumerate(sums):
        np.testing.assert_allclose(asked[m].compat, total, rtol=1e-12)


def test_single_precision_agrees_with_double() -> None:
    field, unary, grad = image_like(1, 2000, 21, 5, log_output=True), unary_of(1, 2000, 21), deviates(1, 2000, 21)
    want = [all_gradients(kernel) for kernel in field.kernels]
    out, trace, _ = field.run(unary)
    want_unary, _, _ = field.gradient(out, trace, grad, want)
    kernels = []
    for kernel in field.kernels:
        lattices = Lattices(kernel.lattices.features.astype(np.float32))
        norms = [None if norm is None else norm.astype(np.float32) for norm in (kernel.norm_in, kernel.norm_out)]
        kernels.append(Kernel(lattices, kernel.compat.astype(np.float32), *norms))
    single = replace(field, kernels=kernels)
    got = [all_gradients(kernel) for kernel in kernels]
    out, trace, _ = single.run(unary.astype(np.float32))
    got_unary, _, _ = single.gradient(out, trace, grad.astype(np.float32), got)
    assert samples.relative_l2(got_unary, want_unary) < 1e-4
    for m in range(3):
        for name in PARAMETERS:
            if getattr(want[m], name) is not None:
                assert samples.relative_l2(getattr(got[m], name), getattr(want[m], name)) < 1e-3


def test_lattices_of_other_sizes_are_refused() -> None:
    field = MeanField([kernel_of(2, 150, 4)], 2)
    with pytest.raises(ValueError, match=r"lattices must be of 2 images of 160 points each.*got 2 of 150 points"):
        field.run(unary_of(2, 160, 4))


@pytest.mark.parametrize("function", ["mean_field_batch", "mean_field_gradient"])
def test_each_option_is_needed(function: str) -> None:
    """So none of them is a leftover."""
    zeros, result = np.zeros((1, 3, 2)), np.zeros((1, 3, 2))
    common = {"iterations": 0, "tolerance": 0.0, "threads": 1, "order": 0, "log_output": False, "trace": 0}
    arrays = [address(zeros), address(result)]
    if function == "mean_field_batch":
        options = {**common, "start_from_q": False, "damping": 0.0, "trace_slots": 0}
    else:
        own = {"trace_fixed": False, "output": arrays[0], "grad_output": arrays[0], "grad_start": 0}
        options = {**common, **own, "grad_unary": arrays[1]}
        arrays = []
    call = native(function, np.float64)
    assert call(1, 3, 2, *arrays, [], options)[0] == [0]
    for missing in options:
        with pytest.raises(KeyError, match=missing):
            call(1, 3, 2, *arrays, [], {key: value for key, value in options.items() if key != missing})
