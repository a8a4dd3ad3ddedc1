"""deeplab_crf.nn.fuse on networks that torch.fx cannot follow and that do more with their children than call them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_samples import error
from torch import Tensor, nn

from deeplab_crf.nn import DilatedConv2d, FusionReport, fuse


class ConvBN(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int = 16, filters: int = 16, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)
        )


class Encoder(nn.Module):
    """An encoder with the attributes that decoders and losses use; it returns a list of features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage = ConvBN(), ConvBN(16, 32, stride=2)
        self.out_channels = [16, 32]
        self.config = {"stride": 2}

    @property
    def output_stride(self) -> int:
        return self.config["stride"]

    def scaled(self, x: Tensor) -> Tensor:
        return self.stem(x) * 2

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [x, self.stage(x)]


class Parent(nn.Module):
    """A module that torch.fx cannot trace, since its forward checks a size; it runs the function of the test."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] < 2:
            raise ValueError("too small")
        return self.function(self, x)


def _settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def _input() -> Tensor:
    torch.manual_seed(8)
    return torch.randn(2, 16, 10, 12)


def _check(model: nn.Module, x: Tensor | None = None, example: bool = False) -> nn.Module:
    model, x = _settled(model), _input() if x is None else x
    with torch.no_grad():
        want = model(x.clone())
        fused = fuse(model, x) if example else fuse(model)
        for _ in range(2):
            assert error(_flat(fused(x.clone())), _flat(want)) < 1e-5
    return fused


def _flat(result: Any) -> Tensor:
    """Return the values of a result of any structure."""
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else None
    return result.double().flatten() if parts is None else torch.cat([_flat(part) for part in parts])


def _reads_properties(m: Parent, x: Tensor) -> Tensor:
    assert isinstance(m.encoder, Encoder)
    assert type(m.encoder) is Encoder
    return m.encoder(x)[-1] * m.encoder.output_stride + m.encoder.out_channels[-1]


def _checks_a_size(m: Parent, x: Tensor) -> Any:
    features = m.encoder(x)
    if features[0].shape[-1] % m.encoder.output_stride != 0:
        raise RuntimeError("odd")
    return features


def _calls_a_method(m: Parent, x: Tensor) -> Tensor:
    return m.encoder.scaled(x) + m.encoder(x)[0]


def _calls_grandchildren(m: Parent, x: Tensor) -> Tensor:
    return m.encoder.stage(m.encoder.stem[0](x)) + m.encoder(x)[1]


def _goes_through_children(m: Parent, x: Tensor) -> Any:
    features = []
    for child in m.sequence:
        for layer in child.children():
            x = layer(x.clone())
            features.append(x)
    return [*features, m.sequence(x), len(m.sequence), len(list(m.encoder.modules()))][:-2]


def _indexes(m: Parent, x: Tensor) -> Tensor:
    first = m.sequence[0][0]
    assert first.stride == (1, 1)
    assert isinstance(first, nn.Conv2d)
    assert isinstance(m.sequence[-1][1], nn.BatchNorm2d)
    return m.sequence[:1](x) * first.out_channels + m.sequence(x) + first.weight.mean()


def _uses_weights(m: Parent, x: Tensor) -> Tensor:
    conv = m.sequence[0][0]
    return torch.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding) + m.sequence(x)


@pytest.mark.parametrize(
    "function",
    [
        _reads_properties, _checks_a_size, _calls_a_method, _calls_grandchildren, _goes_through_children, _indexes,
        _uses_weights,
    ],
)  # fmt: skip
def test_what_a_parent_may_do_with_its_children(function: Callable[..., Any]) -> None:
    model = Parent(function, encoder=Encoder(), sequence=nn.Sequential(ConvBN(), ConvBN()))
    report = _check(model).fusion_report
    assert "TraceError" in report.untraced[""]
    assert report.folded["encoder.stem.0"] == "encoder.stem.1"
    assert report.replaced["sequence.1.0"] == ["bias", "relu"]


class ListDecoder(nn.Module):
    """A decoder of a list of features, which torch.fx traces with proxies for tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvBN(32, 16)

    def forward(self, features: list[Tensor]) -> Tensor:
        return nn.functional.interpolate(self.block(features[-1]), scale_factor=2.0) + features[0]


class AnyDecoder(nn.Module):
    """A decoder of a tensor, a list or a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvBN(32, 16)

    def forward(self, features: Any) -> Tensor:
        if isinstance(features, Tensor):
            return self.block(features)
        if hasattr(features, "items"):
            features = [feature for _, feature in features.items()]
        return self.block(torch.cat(features, 1))


class Skip(nn.Module):
    """A module that takes None without having it as a default."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvBN()

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        return self.block(x) if skip is None else self.block(x) + skip


def test_children_that_take_lists_and_dictionaries() -> None:
    def function(m: Parent, x: Tensor) -> Any:
        both, features = torch.cat([x, x], 1), m.encoder(x)
        return [
            m.listed(features), m.listed(tuple(features)), m.any(both), m.any([x, x]), m.any({"a": x, "b": x}), m.any(both),
            m.skip(x, None), m.skip(x, x), m.skip(x, skip=None),
        ]  # fmt: skip

    model = Parent(function, encoder=Encoder(), listed=ListDecoder(), any=AnyDecoder(), skip=Skip())
    report = _check(model).fusion_report
    assert {"encoder.stem.0", "any.block.0", "listed.block.0", "skip.block.0"} <= set(report.replaced)


@pytest.mark.parametrize("network", [AnyDecoder, Skip, ListDecoder])
def test_networks_that_take_tensors_and_others(network: type[nn.Module]) -> None:
    model, x = _settled(network()), _input()
    both = torch.cat([x, x], 1)
    calls: dict[type, list[tuple[Any, ...]]] = {
        AnyDecoder: [(both,), ([x, x],), ({"a": x, "b": x},)],
        Skip: [(x, x), (x, None)],
        ListDecoder: [([torch.zeros(2, 16, 20, 24), both],), ((torch.zeros(2, 16, 20, 24), both),)],
    }
    with torch.no_grad():
        fused = fuse(model)
        for inputs in calls[network]:
            assert error(fused(*inputs), model(*inputs)) < 1e-5
    assert fused.fusion_report.replaced == {"block.0": ["bias", "relu"]}


def test_children_that_keep_what_they_saw() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ConvBN()
            self.seen: list[Tensor] = []
            self.count = 0
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.block(x)
            self.count += 1
            self.seen.append(self.last)
            self.calls += 1
            return self.last

    def function(m: Parent, x: Tensor) -> Any:
        m.keeps.seen.clear()
        return [m.keeps(x), m.keeps.last, *m.keeps.seen, m.keeps.last * m.keeps.count / m.keeps.calls]

    model = Parent(function, keeps=Keeps())
    fused = fuse(_settled(model))
    assert "forward changes" in fused.fusion_report.untraced["keeps"]
    assert set(fused.fusion_report.replaced) == {"keeps.block.0"}
    assert (fused.keeps.count, fused.keeps.calls.item(), fused.keeps.seen) == (0, 0, [])
    assert not hasattr(fused.keeps, "last")
    with torch.no_grad():
        assert error(_flat(fused(_input())), _flat(model(_input()))) < 1e-5


def test_module_lists_and_shared_modules() -> None:
    shared = ConvBN()

    class Lists(nn.ModuleList):  # has a forward of its own
        def forward(self, x: Tensor) -> list[Tensor]:
            return [module(x) for module in self]

    def function(m: Parent, x: Tensor) -> Any:
        for i in range(len(m.list)):
            x = m.list[i](x) + i
        x = m.dict["a"](x) if "a" in m.dict else x
        return [*m.lists(x), m.again(x)]

    model = Parent(
        function,
        list=nn.ModuleList([shared, ConvBN()]),
        dict=nn.ModuleDict({"a": ConvBN(), "b": shared}),
        lists=Lists([ConvBN(), ConvBN()]),
        again=shared,
    )
    fused = _check(model)
    assert fused.list[0] is fused.dict["b"] is fused.again
    assert isinstance(fused.lists, Lists)
    assert len(fused.lists) == 2
    assert sum(isinstance(module, DilatedConv2d) for module in fused.modules()) == 5


def test_subclasses_and_hooks_under_a_parent() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight.view(self.out_channels, -1)  # fails where weights are laid out otherwise
            return self._conv_forward(input, (weight / 2).view_as(self.weight), self.bias)

    seen: list[str] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(type(module).__name__)
        return output - 1

    hooked = nn.Sequential(ConvBN(), nn.Conv2d(16, 16, 1))
    hooked.register_forward_hook(hook)
    hooked[0].register_forward_hook(hook)
    model = Parent(lambda m, x: m.hooked(m.scaled(x)) + m.pair(x), scaled=Scaled(16, 16, 3, padding=1), hooked=hooked)
    model.add_module("pair", nn.Sequential(Scaled(16, 16, 3, padding=1), ConvBN()))
    report = _check(model).fusion_report
    assert seen == ["ConvBN", "Sequential"] * 3
    assert report.left["pair.0"] == "Scaled"
    assert "pair.1.0" in report.replaced
    assert report.layout == []


@pytest.mark.parametrize("followed", [True, False])
def test_views_of_what_would_be_channels_last(followed: bool) -> None:
    def through_a_view(m: nn.Module, x: Tensor) -> Tensor:
        y = m.block(x)
        flat = y.view(y.size(0), -1).view(2, 16, -1)
        return flat.view_as(y) + 1

    def written(m: nn.Module, x: Tensor) -> Tensor:
        y = m.block(x)
        y.view(y.size(0), -1).mul_(2)
        return y

    class Followed(nn.Module):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__()
            self.block, self.function = ConvBN(), function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self, x)

    for function in (through_a_view, written):
        model = Followed(function) if followed else Parent(function, block=ConvBN())
        report = _check(model).fusion_report
        assert report.layout == ([] if followed and function is through_a_view else [""])
        assert report.replaced == {"block.0": ["bias", "relu"]}
    assert "depends on how tensors lie in memory: the network" in str(report)


def _of_encoder(m: Parent, x: Tensor) -> Any:
    return m.encoder(x)


def test_the_result_can_be_moved_saved_copied_and_trained() -> None:
    model, x = _settled(Parent(_of_encoder, encoder=Encoder())), _input()
    fused = fuse(model)
    other = fuse(_settled(Parent(_of_encoder, encoder=Encoder())))
    with torch.no_grad():
        want = _flat(model(x))
        other.load_state_dict(fused.state_dict())
        for same in (
            other,
            copy.deepcopy(fused),
            pickle.loads(pickle.dumps(fused)),
            copy.deepcopy(pickle.loads(pickle.dumps(fused))),
        ):
            assert error(_flat(same(x)), want) < 1e-5
            assert same.encoder.forward.module is same.encoder
            assert isinstance(same.fusion_report, FusionReport)
        assert error(_flat(copy.deepcopy(fused).double()(x.double())), want) < 1e-5
        compiled = torch.compile(fused.encoder, fullgraph=True, backend="aot_eager")
        assert error(_flat(compiled(x)), want) < 1e-5
        assert error(_flat(fuse(fused)(x)), want) < 1e-5
    assert set(model.state_dict()) < set(fused.state_dict())
    fused.train()
    assert all(module.training for module in fused.modules())
    _flat(fused(x)).sum().backward()
    assert all(
        part.grad is not None
        for module in fused.modules()
        if isinstance(module, DilatedConv2d)
        for part in module.parameters()
    )


def test_copies_of_a_network_that_was_followed_keep_the_report() -> None:
    model = _settled(nn.Sequential(ConvBN(), nn.Flatten()))
    fused = fuse(model)
    for same in (copy.deepcopy(fused), copy.copy(fused), copy.deepcopy(copy.deepcopy(fused))):
        assert same.fusion_report == fused.fusion_report
        assert torch.equal(same(_input()), fused(_input()))


class Broken(nn.Module):
    """A module that behaves differently for a proxy than for a tensor."""

    def __init__(self, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.fault = ConvBN(), fault

    def forward(self, x: Tensor) -> Tensor:
        return self.fault(self.inner(x))


def _fails(x: Tensor) -> Tensor:
    return x if type(x) is Tensor else x.no_such_method()


def _differs(x: Tensor) -> Tensor:
    return x if type(x) is Tensor else x + 1


@pytest.mark.parametrize("fault", [_fails, _differs])
@pytest.mark.parametrize("whole", [True, False])
def test_an_example_finds_what_cannot_be_fused(whole: bool, fault: Callable[[Tensor], Tensor]) -> None:
    broken = Broken(fault)
    model = broken if whole else Parent(lambda m, x: m.broken(m.encoder(x)[0]), broken=broken, encoder=Encoder())
    report = _check(model, example=True).fusion_report
    reason = report.untraced["" if whole else "broken"]
    assert reason.startswith("on the example: ")
    assert ("no_such_method" if fault is _fails else "differ by") in reason
    assert report.replaced["inner.0" if whole else "broken.inner.0"] == ["bias", "relu"]
    assert 0 < report.difference < 1e-5
    assert "largest difference on the example" in str(report)


def test_an_example_of_several_arguments_says_whether_views_work() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ConvBN()

        def forward(self, x: Tensor, flag: bool) -> Tensor:
            y = self.block(x)
            return nn.functional.adaptive_avg_pool2d(y, 1).view(y.shape[0], -1) if flag else y.view(y.shape[0], -1)

    model, x = _settled(Pooled()), _input()
    with torch.no_grad():
        for flag in (True, False):
            fused = fuse(model, (x, flag))
            assert error(fused(x, flag), model(x, flag)) < 1e-5
            weight = next(module for module in fused.modules() if isinstance(module, DilatedConv2d)).weight
            assert weight.is_contiguous() != flag
    with pytest.raises(TypeError, match="flag"):
        fuse(model, x)


def test_the_network_that_is_given_stays_as_it_is() -> None:
    model = _settled(Parent(_of_encoder, encoder=Encoder()))
    before = copy.deepcopy(model)
    fuse(model, _input())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in before.named_modules()]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert "forward" not in vars(model.encoder)


class _Read(torch.nn.Module):
    """A module that reads an attribute of its child, whose forward therefore must not be replaced."""

    def __init__(self, child: torch.nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        return self.child(x) * self.child.calls


class _Counting(torch.nn.Module):
    """A module that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


def test_networks_are_fused_in_inference_mode() -> None:
    """The copies of their buffers are inference tensors, which have no version counter."""
    network, x = _Read(_Counting()).eval(), torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        fused = fuse(network)
        assert "forward changes calls" in fused.fusion_report.untraced["child"]
        assert float(fused.child.calls) == 0, "following it counts as no call"
        for _ in range(2):
            torch.testing.assert_close(fused(x), network(x), rtol=1e-5, atol=1e-5)
        assert float(fused.child.calls) == 2
