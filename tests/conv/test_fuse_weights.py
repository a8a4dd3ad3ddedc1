"""deeplab_crf.nn.fuse on weights that are computed, pruned, fake or denormal; packing of denormal weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conv_samples import Sizes, error, expected, tensors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from deeplab_crf import aspp_sum, conv_algorithm, dilated_conv2d
from deeplab_crf.nn import fuse

TINY = torch.finfo(torch.float32).tiny


def _prune_both(conv: nn.Conv2d) -> nn.Conv2d:
    prune.l1_unstructured(conv, "weight", 0.3)
    prune.random_unstructured(conv, "bias", 0.2)
    return conv


def _network(change: Callable[[nn.Conv2d], nn.Conv2d] = lambda conv: conv, filters: int = 16) -> nn.Sequential:
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(filters)
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(change(nn.Conv2d(16, filters, 3, padding=1)), norm, nn.ReLU()).eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("filters", [16, 5])  # 5: left to torch, with BatchNorm folded
@pytest.mark.parametrize(
    "change",
    [
        weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
        parametrizations.orthogonal, _prune_both,
    ],
)  # fmt: skip
def test_computed_weights(change: Callable[[nn.Conv2d], nn.Conv2d], filters: int, in_parts: bool) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _network(change, filters)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.shape[0] else x

    model, x = (Outer() if in_parts else _network(change, filters)).eval(), torch.randn(2, 16, 9, 10)
    prefix = "net." if in_parts else ""
    with torch.no_grad():
        want = model(x)
        fused = fuse(model)
        for same in (fused, copy.deepcopy(fused)):
            assert error(same(x), want) < 1e-5
        assert error(model(x), want) == 0
    report = fused.fusion_report
    assert report.folded == {f"{prefix}0": f"{prefix}1"}
    assert set(report.left if filters == 5 else report.replaced) == {f"{prefix}0"}


def test_a_tensor_with_a_history_among_the_attributes() -> None:
    model = _network()
    model.seen = model[0](torch.randn(1, 16, 4, 4))
    fuse(model)
    assert model.seen.grad_fn is not None


@pytest.mark.parametrize("in_parts", [False, True])
def test_fake_tensors(in_parts: bool) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.shape[0] else x

    make = Outer if in_parts else _network
    with FakeTensorMode() as mode:
        of_fakes, x = make().eval(), torch.randn(1, 16, 9, 9)
        result = fuse(of_fakes)(x)
        assert isinstance(result, FakeTensor)
        assert result.shape == (1, 16, 9, 9)
    assert isinstance(next(fuse(of_fakes).parameters()), FakeTensor)
    model = make().eval()
    with mode:
        fused = fuse(model)
    real = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        assert error(fused(real), model(real)) < 1e-5


def test_denormal_weights_are_packed_as_zeros() -> None:
    """The results differ from exact ones only by products with values below 1.2e-38."""
    x, weight, _ = tensors(Sizes(1, 20, 19, 9, 10))
    weight[3] *= 1e-41
    weight[:, 5, 1] *= 1e-40
    weight[7] = TINY * weight[7].sign()  # the smallest that stay
    large = x * 1e30
    flushed = torch.where(weight.abs() < TINY, 0, weight)
    for algorithm in ("direct", "winograd", "shifted"):
        with conv_algorithm(algorithm):

            def run(w: Tensor, summed: bool = algorithm == "shifted") -> Tensor:
                return aspp_sum(large, [w], None, [1]) if summed else dilated_conv2d(large, w, padding=1)

            got = run(weight)
            assert torch.equal(got[:, 3], torch.zeros_like(got[:, 3]))
            if algorithm != "winograd":  # whose transformed weights are smaller
                assert torch.equal(got, run(flushed))
                assert (got[:, 7] != 0).all()
            assert error(got, expected(large, weight, padding=1)) < 1e-4


@pytest.mark.parametrize("filters", [16, 5])
def test_denormal_weights_that_fuse_folds_are_zeros(filters: int) -> None:
    model = _network(filters=filters)
    with torch.no_grad():
        model[0].weight[2] *= 1e-40
        model[1].weight[3] = 1e-40
        fused = fuse(model)
        weight = next(value for value in fused.parameters() if value.ndim == 4)
        assert not ((weight != 0) & (weight.abs() < TINY)).any()
        assert (weight[2:4] == 0).all()
        x = torch.randn(1, 16, 9, 9)
        assert error(fused(x), model(x)) < 1e-5
