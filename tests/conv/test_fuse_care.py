"""deeplab_crf.nn.fuse where merging would change what a network computes: writes, hooks, arguments that may be None."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_samples import error
from torch import Tensor, nn
from torch.nn import functional as F

from deeplab_crf.nn import DilatedConv2d, fuse


class Network(nn.Module):
    """Two convolutions, with a forward that is the function of the test."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.drop = nn.Dropout()
        self.relu = nn.ReLU()
        self.function = function
        self.eval()

    def forward(self, x: Tensor, z: Tensor) -> Any:
        return self.function(self, x, z)


def _inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    return torch.randn(2, 16, 9, 10), torch.randn(2, 16, 9, 10)


def _check(model: nn.Module, *inputs: Any) -> Any:
    """Compare with float64, on copies of the inputs, since a network may write to them."""
    with torch.no_grad():
        want = copy.deepcopy(model).double()(*(v.double() if isinstance(v, Tensor) else v for v in inputs))
        fused = fuse(model)
        assert error(fused(*copy.deepcopy(inputs)), want) < 1e-5
    return fused


def _through_a_view(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y, view = m.a(x), x[:, :8]
    view.relu_()
    return y + x


def _by_a_dropout_that_returns_its_input(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y = m.a(m.drop(x))
    x.relu_()
    return y + x


def _by_keyword(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y = m.a(x)
    F.relu_(input=x)
    return y + x


def _by_a_flag(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y = m.a(x)
    F.relu(x, True)
    return y + x


def _by_out(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y = m.a(x)
    torch.mul(z, 2, out=x)
    return y + x


def _to_the_residual(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y = m.a(x) + z
    z.mul_(3)
    return torch.relu(y)


def _before_the_sum_of_branches(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y, w = m.a(x), m.b(x)
    x.relu_()
    return y + w


def _between_branches(m: Network, x: Tensor, z: Tensor) -> Tensor:
    y = m.a(x)
    x.relu_()
    return y + m.b(x)


def _by_operators(m: Network, x: Tensor, z: Tensor) -> Tensor:
    first = x
    x *= 2
    x += z
    x -= m.b(x)
    x /= 3
    return m.a(x) + first


@pytest.mark.parametrize(
    "function",
    [
        _through_a_view, _by_a_dropout_that_returns_its_input, _by_keyword, _by_a_flag, _by_out, _to_the_residual,
         _before_the_sum_of_branches, _between_branches, _by_operators,
    ],
)  # fmt: skip
def test_writes(function: Callable[..., Tensor]) -> None:
    _check(Network(function), *_inputs())


def test_in_place_additions_are_merged() -> None:
    def function(m: Network, x: Tensor, z: Tensor) -> Tensor:
        y = m.a(x)
        y += z
        return F.relu(y, True)

    assert _check(Network(function), *_inputs()).fusion_report.replaced == {"a": ["bias", "residual", "relu"]}


def test_a_branch_that_is_used_again() -> None:
    def function(m: Network, x: Tensor, z: Tensor) -> Tensor:
        y = m.b(x)
        return torch.cat([m.a(x) + y, y])

    assert _check(Network(function), *_inputs()).fusion_report.sums == []


@pytest.mark.parametrize("hooked", ["", "inner", "inner.a", "inner.relu"])
def test_hooks(hooked: str) -> None:
    seen: list[Any] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(type(output))
        return output - 1

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Network(lambda m, x, z: m.relu(m.a(x) + z))
            self.last = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.last(self.inner(x, z))

    model = Outer().eval()
    model.get_submodule(hooked).register_forward_hook(hook)
    report = _check(model, *_inputs()).fusion_report
    assert seen == [Tensor, Tensor]
    assert "last.0" in report.replaced
    assert ("inner.a" in report.left) == (hooked == "inner.a")
    assert hooked in report.untraced or hooked.startswith("inner.")


def test_an_argument_that_may_be_none() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.body(x) if mask is None else self.body(x) * mask

    model = Masked().eval()
    x, z = _inputs()
    _check(model, x, z)
    report = _check(model, x).fusion_report
    assert report.untraced == {"": "forward takes mask, which may be None"}
    assert report.replaced == {"body.0": ["bias", "relu"]}


def test_a_number_may_be_added() -> None:
    model = Network(lambda m, x, z: m.relu(m.a(x) + z))
    _check(model, _inputs()[0], 0.5)


def test_weights_of_five_axes() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Unflatten(1, (4, 4)), nn.Conv3d(4, 4, 1)).eval()
    _check(model, _inputs()[0])


def test_autocast_keeps_a_residual_of_full_precision() -> None:
    x, z = _inputs()

    def in_place(m: Network, x: Tensor, z: Tensor) -> Tensor:
        y = m.a(x)
        y += z
        return y

    for function, kind in ((lambda m, x, z: m.relu(m.a(x) + z), torch.float32), (in_place, torch.bfloat16)):
        model = Network(function)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            got, want = fuse(model)(x, z), model(x, z)
        assert got.dtype == want.dtype == kind
        assert error(got, want) < 1e-2


def test_subclasses_are_left_whole_and_said_so() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model = nn.Sequential(Scaled(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)).eval()
    fused = _check(model, _inputs()[0])
    assert fused.fusion_report.left == {"0": "Scaled"}
    assert sum(isinstance(module, DilatedConv2d) for module in fused.modules()) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_scripted_modules_are_left_whole() -> None:
    x = _inputs()[0]
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()).eval())
    for model in (scripted, nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), scripted).eval()):
        with torch.no_grad():
            assert error(fuse(model)(x), model(x)) < 1e-5
