"""torch.ops.deeplab_crf: convolutions under autograd, torch.compile, export and autocast, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conv_samples import Sizes, error, expected, tensors
from devices import opcheck
from torch.autograd import forward_ad

from deeplab_crf import aspp_sum, conv_algorithm, dilated_conv2d, set_conv_algorithm
from deeplab_crf.ops.conv.algorithms import ConvAlgorithm, make_policy

OPS = torch.ops.deeplab_crf
SMALL = Sizes(2, 3, 4, 5, 6, padding=(2, 2), dilation=(2, 2))


def _leaves(*values: torch.Tensor) -> list[torch.Tensor]:
    return [value.clone().requires_grad_() for value in values]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients(activation: str | None) -> None:
    x, weight, bias = _leaves(*tensors(SMALL, dtype=torch.float64))
    residual = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        x, weight, bias, residual = inputs
        return dilated_conv2d(x, weight, bias, residual=residual, activation=activation, **SMALL.geometry())

    assert torch.autograd.gradcheck(function, (x, weight, bias, residual))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias, residual))


def test_gradients_of_the_sum() -> None:
    x, w1, b1 = _leaves(*tensors(SMALL, dtype=torch.float64))
    _, w2, b2 = _leaves(*tensors(SMALL, seed=1, dtype=torch.float64))

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        x, w1, w2, b1, b2 = inputs
        return aspp_sum(x, [w1, w2], [b1, b2], [1, 3])

    assert torch.autograd.gradcheck(function, (x, w1, w2, b1, b2))
    assert torch.autograd.gradgradcheck(function, (x, w1, w2, b1, b2))
    assert torch.autograd.gradcheck(lambda x, w: aspp_sum(x, [w, w2.detach()], None, [1, 3]), (x, w1))


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_gradients_of_the_kernels_are_those_of_torch(algorithm: str) -> None:
    sizes = Sizes(2, 17, 18, 9, 10, padding=(2, 2), dilation=(2, 2))
    values = (*tensors(sizes), torch.randn(2, 18, 9, 10))
    ours, theirs = _leaves(*values), _leaves(*values)
    with conv_algorithm(algorithm):
        y = dilated_conv2d(*ours[:3], residual=ours[3], activation="relu", **sizes.geometry())
    want = (torch.conv2d(*theirs[:3], **sizes.geometry()) + theirs[3]).relu()
    grad = torch.randn_like(want)
    y.backward(grad)
    want.backward(grad)
    for our, their in zip(ours, theirs, strict=True):
        assert error(our.grad, their.grad) < 1e-3  # a ReLU at its kink may differ


@pytest.mark.parametrize("algorithm", ["torch", "direct", "winograd", "shifted"])
def test_opcheck(algorithm: str) -> None:
    x, weight, bias = _leaves(*tensors(SMALL))
    residual = torch.randn(2, 4, 5, 6, requires_grad=True)
    geometry, policy = ([1, 1], [2, 2], [2, 2]), make_policy(ConvAlgorithm(algorithm))
    opcheck(OPS.dilated_conv2d, (x, weight, bias, residual, *geometry, False, policy))
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    opcheck(OPS.dilated_conv2d, (last, weight, None, None, *geometry, False, policy))
    opcheck(OPS.aspp_sum, (x, [weight, weight.detach()], [bias, bias.detach()], [1, 2], policy))
    opcheck(OPS.aspp_sum, (last, [weight], [], [3], policy))


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(32, 32, 3, 3) / 17)
        self.heads = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(21, 32, 3, 3) / 17) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = dilated_conv2d(x, self.weight, padding=2, dilation=2, activation="relu", residual=x)
        return aspp_sum(y, list(self.heads), None, [2, 4])


def test_compile_and_export() -> None:
    network, x = _Network(), torch.randn(2, 32, 24, 24)
    want = network(x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert error(compiled(x), want) < 1e-5
    loss = compiled(x).square().sum()
    loss.backward()
    exported = torch.export.export(network, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=8)}})
    assert error(exported.module()(torch.cat([x, x])), torch.cat([want, want])) < 1e-5


def _ours_and_theirs() -> list[tuple[Any, Any]]:
    def convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return dilated_conv2d(x, weight, padding=1, residual=x, activation="relu")

    def theirs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (torch.conv2d(x, weight, padding=1) + x).relu()

    def summed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return aspp_sum(x, [weight, 2 * weight], None, [1, 2])

    def their_sum(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x, weight, padding=1) + torch.conv2d(x, 2 * weight, padding=2, dilation=2)

    return [(convolution, theirs), (summed, their_sum)]


# Torch makes its own forward derivatives with it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(("ours", "theirs"), _ours_and_theirs(), ids=["convolution", "sum"])
def test_transforms_of_torch_func(ours: Any, theirs: Any) -> None:
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(4, 4, 3, 3)
    ones = (torch.ones_like(x), torch.ones_like(weight))
    for got, want in zip(
        torch.func.jvp(ours, (x, weight), ones), torch.func.jvp(theirs, (x, weight), ones), strict=True
    ):
        assert error(got, want) < 1e-5
    weights = torch.stack([weight, -weight])
    got, want = (torch.vmap(function, in_dims=(None, 0))(x, weights) for function in (ours, theirs))
    assert error(got, want) < 1e-5
    got, want = (torch.func.grad(lambda w, f=function: f(x, w).sum())(weight) for function in (ours, theirs))
    assert error(got, want) < 1e-5
    compiled = torch.compile(lambda v: torch.func.jvp(lambda q: ours(q, weight), (v,), (v,))[1], backend="aot_eager")
    assert error(compiled(x), torch.func.jvp(lambda q: theirs(q, weight), (x,), (x,))[1]) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("trained", [False, True])
def test_forward_derivatives(trained: bool) -> None:
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(4, 4, 3, 3, requires_grad=trained)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for ours, theirs in _ours_and_theirs():
            got, want = (forward_ad.unpack_dual(function(dual, weight)).tangent for function in (ours, theirs))
            assert error(got, want) < 1e-5


def test_a_closed_relu_stops_gradients_that_are_not_finite() -> None:
    x, weight, _ = tensors(SMALL)
    (x,) = _leaves(x)
    y = dilated_conv2d(x, weight, activation="relu", **SMALL.geometry())
    y.backward(torch.where(y > 0, 1.0, torch.inf))
    assert x.grad.isfinite().all()


def test_autocast_leaves_float64() -> None:
    x, weight, _ = tensors(SMALL, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dilated_conv2d(x, weight).dtype == aspp_sum(x, [weight], None, [1]).dtype == torch.float64


def test_integers_of_numpy_are_integers() -> None:
    x, weight, _ = tensors(SMALL)
    got = dilated_conv2d(x, weight, padding=np.int64(1), stride=(np.int32(2), 1))
    assert torch.equal(got, dilated_conv2d(x, weight, padding=1, stride=(2, 1)))


def test_autocast_does_what_it_does_with_conv2d() -> None:
    x, weight, bias = tensors(Sizes(1, 32, 32, 12, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = dilated_conv2d(x, weight, bias, padding=1)
        summed = aspp_sum(x, [weight], [bias], [1])
        want = torch.conv2d(x, weight, bias, padding=1)
    assert got.dtype == summed.dtype == want.dtype == torch.bfloat16
    assert torch.equal(got, want)
    assert error(got, expected(x, weight, bias, padding=1)) < 0.05


X, WEIGHT = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"x": torch.zeros(1, 5, 8, 8)},
            r"expected input\[1, 5, 8, 8\] to have 3 channels, but got 5 channels instead",
        ),
        (
            {"x": torch.zeros(8, 8)},
            r"Expected 3D \(unbatched\) or 4D \(batched\) input, but got input of size: \[8, 8\]",
        ),
        ({"weight": torch.zeros(4, 3, 3)}, "Expected 4D weight"),
        ({"weight": torch.zeros(0, 3, 3, 3)}, "at least one element along each axis"),
        ({"bias": torch.zeros(3)}, "expected bias to be 1-dimensional with 4 elements, but got bias of size .3."),
        ({"stride": 0}, "non-positive stride is not supported"),
        ({"stride": (1, 1, 1)}, "expected stride to be a single integer value or a list of 2 values"),
        ({"padding": -1}, "negative padding is not supported"),
        ({"padding": 1.0}, "expected padding to be a single integer value or a list of 2 values, but got padding=1.0"),
        ({"padding": 2**31}, "expected an output that fits into memory"),
        (
            {"x": torch.zeros(1, 3, 0, 8), "padding": 2},
            r"Only zero batch inputs are supported, but got .*\[1, 3, 0, 8\]",
        ),
        ({"padding": "same"}, "expected padding to be a single integer value"),
        ({"dilation": 0}, "dilation should be greater than zero"),
        ({"dilation": 4}, r"padded input size per channel: \(8 x 8\). Kernel size: \(9 x 9\).*can't be greater"),
        ({"dilation": 2**40}, "can't be greater than actual input size"),
        (
            {"residual": torch.zeros(1, 4, 8, 8)},
            r"size of the output, \[1, 4, 6, 6\], but got residual of size \[1, 4, 8, 8\]",
        ),
        ({"residual": torch.zeros(1, 1, 6, 6)}, "expected residual to have the size of the output"),
        (
            {"weight": WEIGHT.double()},
            r"Input type \(torch.float32\) and weight type \(torch.float64\) should be the same",
        ),
        ({"bias": torch.zeros(4).double()}, "bias type .* should be the same"),
        ({"residual": torch.zeros(1, 4, 6, 6).double()}, "residual type .* should be the same"),
        ({"weight": WEIGHT.to("meta")}, "same device, but input is on cpu and weight on meta"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        dilated_conv2d(**({"x": X, "weight": WEIGHT} | arguments))


def test_bad_activation_and_algorithm() -> None:
    with pytest.raises(ValueError, match="activation must be None or \"relu\"; got 'gelu'"):
        dilated_conv2d(X, WEIGHT, activation="gelu")
    with pytest.raises(
        ValueError, match="the algorithm must be one of auto, torch, direct, winograd, shifted; got 'fft'"
    ):
        set_conv_algorithm("fft")
    with pytest.raises(ValueError, match="forbid must name some of direct, winograd, shifted; got 'torch'"):
        set_conv_algorithm(forbid="torch")
    with pytest.raises(ValueError, match="forbid goes with"):
        set_conv_algorithm("direct", forbid=["winograd"])


@pytest.mark.parametrize(
    ("weights", "biases", "rates", "message"),
    [
        ([], None, [], "at least one"),
        ([WEIGHT], None, [1, 2], "1 weights, 2 rates and 0 biases"),
        ([WEIGHT, WEIGHT], [torch.zeros(4)], [1, 2], "as many biases or None"),
        ([WEIGHT, torch.zeros(5, 3, 3, 3)], None, [1, 2], "all weights to have 4 filters"),
        ([torch.zeros(4, 3, 2, 3)], None, [1], "odd kernel size"),
        ([WEIGHT], None, [0], "dilation should be greater than zero"),
        ([WEIGHT, torch.zeros(4, 2, 3, 3)], None, [1, 1], "to have 2 channels, but got 3"),
    ],
)
def test_bad_sums(weights: Any, biases: Any, rates: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        aspp_sum(X, weights, biases, rates)
