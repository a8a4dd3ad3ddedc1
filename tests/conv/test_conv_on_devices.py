"""The convolutions on every device. On CUDA, native passes surround torch's products and convolutions."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from conv_samples import LAYOUTS, Sizes, error, expected, tensors
from crf_samples import here
from devices import Device

from deeplab_crf import aspp_sum, conv_algorithm, dilated_conv2d
from deeplab_crf.ops.conv import cuda as on_cuda
from deeplab_crf.ops.conv.algorithms import ConvAlgorithm, Policy, make_policy
from deeplab_crf.ops.conv.shapes import Axis, Shape

pytestmark = pytest.mark.usefixtures("device")

# One off from tiles (4 outputs a phase), phases that are short or empty, channels one off from 32.
SIZES = [
    Sizes(1, 1, 1, 1, 1),
    Sizes(2, 5, 7, 13, 9, padding=(2, 2), dilation=(2, 2)),
    Sizes(1, 33, 31, 15, 17, padding=(3, 2), dilation=(3, 2)),
    Sizes(3, 15, 63, 7, 10, padding=(0, 0)),
    Sizes(1, 33, 16, 11, 12, padding=(12, 12), dilation=(12, 12)),
    Sizes(1, 4, 6, 6, 6, padding=(5, 7), dilation=(1, 2)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "winograd"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_float64(sizes: Sizes, algorithm: str, layout: torch.memory_format) -> None:
    x, weight, bias = (here(tensor) for tensor in tensors(sizes))
    want = expected(x, weight, bias, relu=True, **sizes.geometry())
    with conv_algorithm(algorithm):
        for _ in range(2):  # with weights transformed now, and from the cache
            got = dilated_conv2d(x.to(memory_format=layout), weight, bias, activation="relu", **sizes.geometry())
            assert error(got, want) < 1e-4
            assert got.is_contiguous(memory_format=layout)
        weight.mul_(-1)
        want = expected(x, weight, bias, relu=True, **sizes.geometry())
        got = dilated_conv2d(x.to(memory_format=layout), weight, bias, activation="relu", **sizes.geometry())
        assert error(got, want) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("algorithm", ["torch", "winograd"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_epilogue(
    activation: str | None,
    with_residual: bool,
    with_bias: bool,
    algorithm: str,
    layout: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    sizes = Sizes(2, 9, 21, 7, 9, padding=(2, 2), dilation=(2, 2))
    x, weight, bias = (here(tensor) for tensor in tensors(sizes, dtype=dtype))
    residual = here(tensors(Sizes(2, 21, 1, 7, 9), seed=1, dtype=dtype)[0] - 0.5)
    arguments = {"bias": bias if with_bias else None, "residual": residual if with_residual else None}
    want = expected(x, weight, relu=activation == "relu", **arguments, **sizes.geometry())
    with conv_algorithm(algorithm):
        got = dilated_conv2d(x.to(memory_format=layout), weight, activation=activation, **arguments, **sizes.geometry())
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=layout)
    assert error(got, want) < max(1e-4, 4 * float(torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "shifted"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("filters", "height", "width", "rates"),
    [(21, 13, 15, (6, 12, 18, 24)), (2, 21, 7, (6, 12)), (65, 9, 10, (1, 2, 3)), (1, 1, 1, (5,)), (16, 8, 6, (7, 100))],
)
def test_aspp_sum(
    filters: int,
    height: int,
    width: int,
    rates: tuple[int, ...],
    layout: torch.memory_format,
    algorithm: str,
    dtype: torch.dtype,
) -> None:
    parts = [tensors(Sizes(2, 20, filters, height, width), seed, dtype) for seed in range(len(rates))]
    x = here(parts[0][0])
    weights, biases = [here(part[1]) for part in parts], [here(part[2]) for part in parts]
    want = sum(expected(x, w, b, padding=r, dilation=r) for w, b, r in zip(weights, biases, rates, strict=True))
    with conv_algorithm(algorithm):
        got = aspp_sum(x.to(memory_format=layout), weights, biases, rates)
        without = aspp_sum(x.to(memory_format=layout), weights, None, rates)
    bound = max(1e-4, 8 * float(torch.finfo(dtype).eps))
    assert error(got, want) < bound
    assert error(without.double() + sum(biases).double()[:, None, None], want) < bound
    assert got.is_contiguous(memory_format=layout)


def test_a_weight_where_another_one_died() -> None:
    """A new weight may have the address, version and id of the dead one."""
    x, first = here(torch.randn(1, 8, 9, 9)), here(torch.randn(5, 8, 3, 3))
    with conv_algorithm("shifted"):
        for _ in range(10):
            second = here(torch.randn(5, 8, 3, 3))
            want = expected(x, first, padding=1) + expected(x, second, padding=2, dilation=2)
            assert error(aspp_sum(x, [first, second], None, [1, 2]), want) < 1e-5
            del second


def test_weights_are_cached_until_they_change(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    if device.name == "cpu":
        pytest.skip("the CPU checks the values: test_conv_exactness.py")
    made: list[int] = []
    side_by_side = on_cuda._side_by_side
    monkeypatch.setattr(on_cuda, "_side_by_side", lambda *given: made.append(1) or side_by_side(*given))
    x, weights = here(torch.randn(1, 8, 9, 9)), [here(torch.randn(5, 8, 3, 3)) for _ in range(2)]
    with conv_algorithm("shifted"):
        for _ in range(3):
            aspp_sum(x, weights, None, [1, 2])
        assert len(made) == 1
        weights[1].mul_(2)
        aspp_sum(x, weights, None, [1, 2])
    assert len(made) == 2


@pytest.mark.parametrize("algorithm", ["winograd", "shifted"])
def test_weights_whose_memory_gets_another_shape(algorithm: str) -> None:
    """The memory and the version stay the same."""
    weight = torch.nn.Parameter(here(torch.randn(16, 8, 3, 3)), requires_grad=False)
    with conv_algorithm(algorithm):
        for channels, filters in ((8, 16), (16, 8)):
            weight.data = weight.data.view(filters, channels, 3, 3)
            x = here(torch.randn(1, channels, 9, 9))
            want = expected(x, weight, padding=2, dilation=2)
            assert error(aspp_sum(x, [weight], None, [2]), want) < 1e-4
            assert error(dilated_conv2d(x, weight, padding=2, dilation=2), want) < 1e-4


def test_a_small_workspace_is_used_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (here(tensor) for tensor in tensors(Sizes(3, 9, 21, 14, 19)))
    with conv_algorithm("winograd"):
        convolved = dilated_conv2d(x, weight, bias, padding=2, dilation=2)
    with conv_algorithm("shifted"):
        summed = aspp_sum(x, [weight], [bias], [5])
    monkeypatch.setattr(on_cuda, "WORKSPACE", 36 * 4 * (9 + 21) * 7)  # 7 tiles, or an image
    with conv_algorithm("winograd"):
        assert error(dilated_conv2d(x, weight, bias, padding=2, dilation=2), convolved) < 1e-5
    with conv_algorithm("shifted"):
        assert error(aspp_sum(x, [weight], [bias], [5]), summed) < 1e-5


def test_no_winograd_where_products_are_rounded() -> None:
    x = torch.zeros(1, 4, 9, 9)
    axis = Axis(9, 9, 3, 1, 1, 1)
    shape, forced = Shape(1, 4, 4, axis, axis), make_policy(ConvAlgorithm("winograd"))
    assert on_cuda.find_algorithm(x, shape, forced) == "winograd"
    assert on_cuda.find_algorithm(x, shape, Policy.AUTO) == "torch"
    assert on_cuda.find_algorithm(x.half(), shape, forced) == "torch"
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert on_cuda.find_algorithm(x, shape, forced) == "torch"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("algorithm", ["auto", "winograd", "shifted"])
def test_no_images(algorithm: str) -> None:
    x, weight = torch.empty(0, 8, 9, 9), torch.randn(5, 8, 3, 3)
    with conv_algorithm(algorithm):
        assert dilated_conv2d(x, weight, padding=1).shape == (0, 5, 9, 9)
        assert aspp_sum(x, [weight, weight], None, [1, 2]).shape == (0, 5, 9, 9)


def test_a_residual_of_another_shape() -> None:
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3)
    with pytest.raises(RuntimeError, match="residual"):
        dilated_conv2d(x, weight, padding=1, residual=torch.randn(1, 6, 5, 4))


def test_the_order_of_threads_does_not_change_results(device: Device, request: pytest.FixtureRequest) -> None:
    x, weight, bias = (here(tensor) for tensor in tensors(Sizes(2, 9, 21, 14, 19)))
    orders = (0, 1, 2) if device.name == "emulated" else (0,)
    results = []
    for order in orders:
        if device.name == "emulated":
            module: ModuleType = request.getfixturevalue("emulated")
            module.set_thread_order(order)
        try:
            with conv_algorithm("winograd"):
                convolved = dilated_conv2d(x, weight, bias, padding=2, dilation=2, activation="relu")
            with conv_algorithm("shifted"):
                results.append((convolved, aspp_sum(x, [weight, weight], [bias, bias], [2, 5])))
        finally:
            if device.name == "emulated":
                module.set_thread_order(0)
    for convolved, summed in results[1:]:
        assert torch.equal(convolved, results[0][0])
        assert torch.equal(summed, results[0][1])


@pytest.mark.parametrize("changed", range(4))
@pytest.mark.parametrize("algorithm", ["torch", "winograd"])
def test_sizes_that_another_thread_changes_after_the_check(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, changed: int
) -> None:
    """The kernels read what the tensors were at the start of the call."""
    arguments = [here(tensor) for tensor in (*tensors(SIZES[1]), torch.randn(2, 7, 13, 9))]
    want = expected(*arguments, **SIZES[1].geometry())
    choose = on_cuda.find_algorithm

    def choose_and_change(*given: object) -> str:
        arguments[changed].data = here(torch.zeros(1))
        return choose(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(on_cuda, "find_algorithm", choose_and_change)
    x, weight, bias, residual = arguments
    with conv_algorithm(algorithm):
        got = dilated_conv2d(x, weight, bias, residual=residual, **SIZES[1].geometry())
    assert error(got, want) < 1e-4
