"""Passes of the CUDA engine around a library's convolutions and products, emulated on the CPU: against sums written out in float64,
with guarded memory around every array.

Run these under AddressSanitizer too (`tools/sanitize tests/cuda/test_cuda_conv.py`): it also sees what is only read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_native import POISON, QUEUE, poisoned
from native_batch import address
from numpy.typing import NDArray

Array = NDArray[Any]

# Of the canaries before and behind an array.
STRIP = 512
# Bits of a mantissa, the leading one counted. uint16: bfloat16's bits.
DTYPES = {"f32": (np.float32, 24), "f64": (np.float64, 53), "f16": (np.float16, 11), "bf16": (np.uint16, 8)}


@dataclass
class Memory:
    """Arrays that a kernel may use and no byte beyond. kind: "ends": each is an allocation of its own, for AddressSanitizer;
    "aligned", "unaligned" to 16 bytes: each lies between canaries."""

    kind: str
    strips: list[Array] = field(default_factory=list)
    inputs: list[tuple[Array, Array]] = field(default_factory=list)

    def empty(self, *shape: int, dtype: Any = np.float32) -> Array:
        """With nothing good in it."""
        dtype, count = np.dtype(dtype), int(np.prod(shape))
        if self.kind == "ends" or count == 0:
            return poisoned(count, dtype).reshape(shape)
        begin = STRIP + (dtype.itemsize if self.kind == "unaligned" else 0)
        whole = poisoned(begin + count * dtype.itemsize + STRIP, np.uint8)
        end = begin + count * dtype.itemsize
        self.strips += [whole[:begin], whole[end:]]
        return whole[begin:end].view(dtype).reshape(shape)

    def of(self, values: Array | None) -> Array | None:
        """A copy of what a kernel only reads."""
        if values is None:
            return None
        copy = self.empty(*values.shape, dtype=values.dtype)
        copy[...] = values
        self.inputs.append((copy, values.copy()))
        return copy

    def check(self) -> None:
        """Nothing was written outside, nor to an input."""
        assert all((strip == POISON).all() for strip in self.strips)
        for copy, before in self.inputs:
            np.testing.assert_array_equal(copy.view(np.uint8), before.view(np.uint8))


@pytest.fixture(params=["ends", "aligned", "unaligned"])
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    made = Memory(request.param)
    yield made
    made.check()


def random(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape)


def narrowed(values: Array, name: str) -> Array:
    """In the type of this name, bfloat16 by cutting the lower bits off."""
    if name == "bf16":
        return np.ascontiguousarray((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    return values.astype(DTYPES[name][0])


def widened(values: Array, name: str) -> Array:
    """In float64."""
    if name == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def assert_close(got: Array, want: Array, largest: Array | float, name: str, roundings: int) -> None:
    """So many roundings of numbers as large as ``largest``: of the sum's type (float32 for 16 bits), and one to its own."""
    bits = DTYPES[name][1]
    bound = (roundings * 2.0 ** -max(bits, 24) + 2.0**-bits) * np.abs(largest) + 1e-30
    assert (np.abs(widened(got, name) - want) <= bound).all()


# ---------------------------------------------------------------------------------------------------------------------- epilogue
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    ("channels", "inner", "images"),
    [(1, 1, 1), (3, 1, 5), (7, 1, 33), (8, 1, 32), (257, 1, 16), (5, 3, 2), (4, 15, 3), (2, 17, 1), (21, 257, 1)],
)
@pytest.mark.parametrize(("with_bias", "with_residual"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("relu", [False, True])
def test_epilogue(
    emulated: ModuleType, memory: Memory, name: str, channels: int, inner: int, images: int, with_bias: bool,
    with_residual: bool, relu: bool,
) -> None:  # fmt: skip
    """Lines of 16 bytes and blocks of 256 threads, one more and one less; neighbours that share a channel, and that do not."""
    shape = (images, channels, inner)
    values, residual, bias = (
        narrowed(random(*size, seed=seed), name) for seed, size in enumerate((shape, shape, (channels, 1)))
    )
    want, largest = widened(values, name), np.abs(widened(values, name))
    for used, part in ((with_bias, bias), (with_residual, residual)):
        if used:
            want, largest = want + widened(part, name), largest + np.abs(widened(part, name))
    want = np.maximum(want, 0) if relu else want
    out = memory.empty(*shape, dtype=values.dtype)
    out[...] = values
    given = [address(memory.of(part)) if used else 0 for used, part in ((with_bias, bias), (with_residual, residual))]
    getattr(emulated, f"conv_epilogue_{name}")(QUEUE, address(out), *given, relu, out.size, channels, inner)
    assert_close(out, want, largest, name, roundings=2)


@pytest.mark.parametrize("name", ["f32", "f64", "f16"])
def test_a_relu_leaves_nan(emulated: ModuleType, memory: Memory, name: str) -> None:
    values = np.array([np.nan, -np.inf, np.inf, -1, 2, -0.0, 0, 3, np.nan], DTYPES[name][0])
    out = memory.empty(9, dtype=values.dtype)
    out[...] = values
    getattr(emulated, f"conv_epilogue_{name}")(QUEUE, address(out), 0, 0, True, 9, 1, 9)
    np.testing.assert_array_equal(out, [np.nan, 0, np.inf, 0, 2, 0, 0, 3, np.nan])


# ------------------------------------------------------------------------------------------------------------------------ gather
OFFSETS = [(0, 0), (-1, 0), (0, 1), (2, -3), (-30, 5), (4, 40), (5, 5), (-6, -6)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("batch", "height", "width", "classes", "count"),
    [(1, 1, 1, 1, 1), (2, 5, 7, 3, 8), (1, 6, 6, 21, 8), (3, 17, 5, 1, 5), (1, 16, 16, 1, 2), (1, 257, 1, 1, 3)],
)
def test_gather(
    emulated: ModuleType, memory: Memory, name: str, last: bool, with_bias: bool, batch: int, height: int, width: int,
    classes: int, count: int,
) -> None:  # fmt: skip
    """Offsets within the map, one beyond its edge, far beyond; 255 to 257 outputs."""
    offsets = OFFSETS[:count]
    products = narrowed(random(batch, height, width, count, classes, seed=0), name)
    bias = random(classes, seed=1).astype(np.float64 if name == "f64" else np.float32) if with_bias else None
    want = np.zeros((batch, height, width, classes)) + (0 if bias is None else bias)
    largest = np.abs(want)
    for s, (dy, dx) in enumerate(offsets):
        for y in range(max(0, -dy), min(height, height - dy)):
            for x in range(max(0, -dx), min(width, width - dx)):
                part = widened(products[:, y + dy, x + dx, s], name)
                want[:, y, x] += part
                largest[:, y, x] += np.abs(part)
    out = memory.empty(
        *((batch, height, width, classes) if last else (batch, classes, height, width)), dtype=products.dtype
    )
    getattr(emulated, f"gather_shifted_{name}")(
        QUEUE,
        address(memory.of(products)),
        address(memory.of(bias)),
        address(out),
        offsets,
        batch,
        height,
        width,
        classes,
        last,
    )
    assert_close(out if last else out.transpose(0, 2, 3, 1), want, largest, name, roundings=count + 1)


def test_as_many_offsets_as_there_may_be(emulated: ModuleType, memory: Memory) -> None:
    most = emulated.MAX_OFFSETS
    products = np.ones((1, 1, 3, most + 1, 1), np.float32)
    out = memory.empty(1, 1, 3, 1)
    for count in (most, most + 1):
        given = (QUEUE, address(memory.of(products)), 0, address(out), [(0, 0)] * count, 1, 1, 3, 1, True)
        if count > most:
            with pytest.raises(ValueError, match=f"offsets must be at most MAX_OFFSETS, {most}; got {count}"):
                emulated.gather_shifted_f32(*given)
        else:
            emulated.gather_shifted_f32(*given)
    assert (out == most).all()


# ---------------------------------------------------------------------------------------------------------------------- Winograd
@dataclass(frozen=True)
class Convolution:
    """3 x 3, stride 1; padding and dilation are pairs."""

    batch: int
    channels: int
    filters: int
    size: tuple[int, int]
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(n + 2 * p - 2 * d for n, p, d in zip(self.size, self.padding, self.dilation, strict=True))

    @property
    def shape(self) -> tuple[Any, ...]:
        axes = zip(self.size, self.out, self.padding, self.dilation, strict=True)
        return (self.batch, self.channels, self.filters, *((n, o, 3, 1, p, d) for n, o, p, d in axes))

    def expected(self, x: Array, weight: Array) -> Array:
        """(B, OH, OW, K) in float64."""
        padded = np.pad(x.astype(np.float64), [(0, 0), *((p, p) for p in self.padding), (0, 0)])
        out = np.zeros((self.batch, *self.out, self.filters))
        for ky in range(3):
            for kx in range(3):
                top, left = ky * self.dilation[0], kx * self.dilation[1]
                seen = padded[:, top : top + self.out[0], left : left + self.out[1]]
                out += seen @ weight[:, :, ky, kx].astype(np.float64).T
        return out


# Phases of 1 to 9 outputs, so tiles of every size, whole and cut; none in some phases; 255 to 257 threads; padding larger and
# smaller than the reach.
CONVOLUTIONS = [
    Convolution(1, 1, 1, (1, 1)),
    *(Convolution(1, 3, 2, (n, m)) for n, m in ((3, 4), (4, 5), (5, 3), (8, 9), (7, 2))),
    Convolution(1, 255, 257, (4, 4)),
    Convolution(1, 256, 255, (4, 4)),
    Convolution(2, 5, 7, (13, 9), (2, 2), (2, 2)),
    Convolution(1, 33, 31, (15, 17), (3, 2), (3, 2)),
    Convolution(3, 15, 6, (7, 10), (0, 0)),
    Convolution(1, 4, 5, (11, 12), (12, 12), (12, 12)),
    Convolution(2, 2, 3, (41, 40), (12, 12), (12, 12)),
    Convolution(1, 4, 6, (6, 6), (5, 7), (1, 2)),
]


def run_winograd(
    module: ModuleType, memory: Memory, problem: Convolution, x: Array, weight: Array, parts: list[tuple[int, int]],
    epilogue: tuple[int, int, bool],
) -> list[Array]:  # fmt: skip
    """A result for each of the parts, of whose tiles alone something is written."""
    rows, columns, _ = module.winograd_tiles(problem.shape)
    matrices = (rows + 2) * (columns + 2)
    transformed = memory.empty(matrices, problem.channels, problem.filters)
    strides = tuple(stride // weight.itemsize for stride in weight.strides)
    module.winograd_weights(QUEUE, problem.shape, weight.ctypes.data, strides, address(transformed))
    results = []
    for part in parts:
        inputs = memory.empty(matrices, part[1], problem.channels)
        module.winograd_inputs(QUEUE, problem.shape, *part, address(x), address(inputs))
        products = memory.of(np.matmul(inputs, transformed))
        out = memory.empty(problem.batch, *problem.out, problem.filters)
        module.winograd_outputs(QUEUE, problem.shape, *part, address(products), epilogue, address(out))
        results.append(out)
    return results


@pytest.mark.parametrize("problem", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize(
    ("with_bias", "with_residual", "relu"), [(True, True, True), (False, True, False), (True, False, True)]
)
def test_winograd(
    emulated: ModuleType, memory: Memory, problem: Convolution, with_bias: bool, with_residual: bool, relu: bool
) -> None:
    x = np.maximum(random(problem.batch, *problem.size, problem.channels, seed=0), 0).astype(np.float32)
    weight = (random(problem.filters, problem.channels, 3, 3, seed=1) / (3 * problem.channels**0.5)).astype(np.float32)
    bias = random(problem.filters, seed=2).astype(np.float32)
    residual = random(problem.batch, *problem.out, problem.filters, seed=3).astype(np.float32)
    want = problem.expected(x, weight) + (bias if with_bias else 0) + (residual if with_residual else 0)
    want = np.maximum(want, 0) if relu else want
    epilogue = tuple(
        address(memory.of(part)) if used else 0 for used, part in ((with_bias, bias), (with_residual, residual))
    )
    tiles = emulated.winograd_tiles(problem.shape)[2]
    given = memory.of(x), memory.of(weight)
    (got,) = run_winograd(emulated, memory, problem, *given, [(0, tiles)], (*epilogue, relu))
    assert np.abs(got - want).max() <= 2e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("problem", CONVOLUTIONS, ids=str)
def test_parts_of_the_tiles_write_their_own_outputs(emulated: ModuleType, memory: Memory, problem: Convolution) -> None:
    """Each output once, and with the bits of all tiles in one go."""
    x = np.abs(random(problem.batch, *problem.size, problem.channels, seed=0)).astype(np.float32) + 1
    weight = np.abs(random(problem.filters, problem.channels, 3, 3, seed=1)).astype(np.float32) + 1
    tiles = emulated.winograd_tiles(problem.shape)[2]
    step = max(1, tiles // 3)
    parts = [(0, tiles), *((first, min(step, tiles - first)) for first in range(0, tiles, step))]
    given = memory.of(x), memory.of(weight)
    whole, *others = run_winograd(emulated, memory, problem, *given, parts, (0, 0, False))
    untouched = np.full(1, POISON * 0x01010101, np.uint32)
    written = [other.view(np.uint32) != untouched for other in others]
    assert (np.sum(written, axis=0) == 1).all()
    for other, where in zip(others, written, strict=True):
        # NumPy's products may differ by the number of rows.
        np.testing.assert_allclose(other[where], whole[where], rtol=1e-4)


def test_weights_of_any_strides(emulated: ModuleType, memory: Memory) -> None:
    problem = Convolution(1, 6, 5, (9, 7), (2, 2), (2, 2))
    x, weight = (random(*shape, seed=0).astype(np.float32) for shape in ((1, 9, 7, 6), (5, 6, 3, 3)))
    tiles = emulated.winograd_tiles(problem.shape)[2]
    results = []
    for axes in ((0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)):
        kept = memory.of(np.ascontiguousarray(weight.transpose(axes)))
        assert kept is not None
        as_before = kept.transpose(np.argsort(axes))
        results += run_winograd(emulated, memory, problem, memory.of(x), as_before, [(0, tiles)], (0, 0, False))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_the_order_of_threads_does_not_show(emulated: ModuleType, memory: Memory) -> None:
    problem = Convolution(2, 9, 21, (14, 19), (2, 2), (2, 2))
    x = random(2, 14, 19, 9, seed=0).astype(np.float32)
    weight = random(21, 9, 3, 3, seed=1).astype(np.float32)
    tiles = emulated.winograd_tiles(problem.shape)[2]
    products = random(2, 14, 19, len(OFFSETS), 21, seed=2).astype(np.float32)
    results = []
    try:
        for order in (0, 1, 2):
            emulated.set_thread_order(order)
            (out,) = run_winograd(
                emulated, memory, problem, memory.of(x), memory.of(weight), [(0, tiles)], (0, 0, True)
            )
            emulated.conv_epilogue_f32(QUEUE, address(out), 0, address(memory.of(out)), True, out.size, 21, 1)
            gathered = memory.empty(2, 14, 19, 21)
            given = (address(memory.of(products)), 0, address(gathered))
            emulated.gather_shifted_f32(QUEUE, *given, OFFSETS, 2, 14, 19, 21, True)
            results.append((out, gathered))
    finally:
        emulated.set_thread_order(0)
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (5, 1), (3, 2)])
def test_other_kernels_are_refused(emulated: ModuleType, kernel: int, stride: int) -> None:
    axis = (9, 9, kernel, stride, 1, 1)
    with pytest.raises(ValueError, match=f"the kernel size must be 3 and the stride 1; got {kernel} and {stride}"):
        emulated.winograd_tiles((1, 4, 4, axis, axis))
