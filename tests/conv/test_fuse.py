"""deeplab_crf.nn: modules, and fuse on typical networks."""

from __future__ import annotations

import pytest
import torch
from conv_samples import error
from torch import nn

from deeplab_crf import conv_algorithm
from deeplab_crf.nn import ASPPSum, DilatedConv2d, fuse
from deeplab_crf.ops.conv import cpu


def _settled(model: nn.Module) -> nn.Module:
    """Return the model in eval mode, with BatchNorms other than the identity."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


class Bottleneck(nn.Module):
    """The bottleneck block of torchvision."""

    def __init__(self, inputs: int, width: int, dilation: int, stride: int = 1, downsample: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        shortcut = [nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)]
        self.downsample = nn.Sequential(*shortcut) if downsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A stem and four blocks of 16 and 32 channels, then DeepLabV2's head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.layer1 = nn.Sequential(Bottleneck(16, 16, 1, downsample=True), Bottleneck(64, 16, 1))
        self.layer2 = nn.Sequential(Bottleneck(64, 32, 1, 2, downsample=True), Bottleneck(128, 32, 4))
        self.aspp = nn.ModuleList([nn.Conv2d(128, classes, 3, padding=r, dilation=r) for r in (6, 12, 18, 24)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        y = sum(branch(x) for branch in self.aspp)
        return nn.functional.interpolate(y, scale_factor=8, mode="bilinear", align_corners=True)


class V3Head(nn.Module):
    """DeepLabV3's pyramid: parallel branches, image pooling, concatenation."""

    def __init__(self, inputs: int = 48, width: int = 24) -> None:
        super().__init__()

        def branch(kernel: int, rate: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, width, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

        self.convs = nn.ModuleList([branch(1, 1), *(branch(3, rate) for rate in (12, 24, 36))])
        self.pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.project = nn.Sequential(
            nn.Conv2d(5 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [conv(x) for conv in self.convs]
        pooled = nn.functional.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*parts, pooled], dim=1))


def _vgg() -> nn.Sequential:
    """Return a small VGG with DeepLab's dilations."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(True), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.ReLU(True), nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(32, 64, 3, padding=12, dilation=12), nn.ReLU(True), nn.Dropout(0.5), nn.Conv2d(64, 21, 1),
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["auto", "winograd", "direct", "torch"])
@pytest.mark.parametrize("make", [ResNet, V3Head, _vgg], ids=["resnet", "v3", "vgg"])
def test_fused_networks_compute_the_same(make: type[nn.Module], algorithm: str) -> None:
    model = _settled(make())
    channels = 48 if make is V3Head else 3
    x = torch.randn(2, channels, 65, 49)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        want = model.double()(x.double())
        fused = fuse(model.float())
        with conv_algorithm(algorithm):
            got = fused(x)
            assert error(got, want) < 1e-4
            assert error(fused(x.to(memory_format=torch.channels_last)), want) < 1e-4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_report_of_a_resnet() -> None:
    fused = fuse(_settled(ResNet()))
    report = fused.fusion_report
    assert len(report.folded) == 15
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert len([module for module in fused.modules() if isinstance(module, nn.ReLU)]) == len(report.left)
    assert report.left == {"conv1": "3 -> 16 channels", "layer2.0.conv2": "kernel 3x3, stride 2"}
    assert report.replaced["layer1.0.conv1"] == ["bias", "relu"]
    assert report.replaced["layer1.0.conv3"] == report.replaced["layer2.1.conv3"] == ["bias", "residual", "relu"]
    assert report.replaced["layer1.0.downsample.0"] == ["bias"]
    assert report.sums == [[f"aspp.{i}" for i in range(4)]]
    assert "15 BatchNorms folded; 13 convolutions replaced, with 4 residuals and 11 ReLUs; 1 sums of 4" in str(report)


def test_report_of_a_vgg() -> None:
    report = fuse(_vgg().eval()).fusion_report
    assert report.left == {"0": "3 -> 16 channels"}
    assert report.replaced == {"2": ["bias", "relu"], "5": ["bias", "relu"], "8": ["bias", "relu"], "11": ["bias"]}


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fuse(ResNet())


class Awkward(nn.Module):
    """Patterns that must not be merged, or only with care."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.other = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.reflect = nn.Conv2d(16, 16, 3, padding="same", padding_mode="reflect")
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = self.norms[0](y) + y  # two users
        z = z + self.norms[1](self.conv(z))  # the same convolution, another BatchNorm, the residual on the left
        z = torch.relu(self.norms[2](self.grouped(z)) + 1.0)  # a number
        pooled = nn.functional.adaptive_avg_pool2d(z, 1)
        w = self.other(z)
        z.relu_().mul_(0.5)  # writes to the input of a convolution before its sum
        w = w + z
        v = self.other(w) + self.norms[3](pooled)  # broadcast
        pooled += self.other(pooled)  # changes what is used again
        return self.reflect(torch.add(self.other(v), v, alpha=2)).relu() + pooled


def test_awkward_networks() -> None:
    model = _settled(Awkward())
    x = torch.randn(1, 16, 12, 13)
    with torch.no_grad():
        want = model(x)
        fused = fuse(model)
        assert error(fused(x), want) < 1e-5
    assert set(fused.fusion_report.left) == {"grouped", "reflect"}


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.twice = nn.ModuleList([self.body, nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.twice:
            x = module(x) if x.mean() > -100 else x
        return x


def test_networks_that_cannot_be_traced() -> None:
    model = _settled(DataDependent())
    x = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        want = model(x)
        fused = fuse(model)
        assert error(fused(x), want) < 1e-5
    report = fused.fusion_report
    assert "TraceError" in report.untraced[""]
    assert set(report.replaced) == {"body.0", "twice.1.0"}
    assert "not traced: the network" in str(report)


def test_shared_modules_stay_shared() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.max(self.base(x), nn.functional.interpolate(self.base(x[..., ::2, ::2]), size=x.shape[-2:]))

    model = _settled(Scales())
    x = torch.randn(1, 16, 10, 12)
    with torch.no_grad():
        fused = fuse(model)
        assert error(fused(x), model(x)) < 1e-5
    assert sum(isinstance(module, DilatedConv2d) for module in fused.modules()) == 1


def test_fused_twice() -> None:
    model = _settled(ResNet())
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert error(fuse(fuse(model))(x), model(x)) < 1e-4


def test_with_several_threads_pointwise_convolutions_are_torch_s_alone_and_ours_in_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[str] = []
    choose = cpu.choose_algorithm
    monkeypatch.setattr(cpu, "choose_algorithm", lambda *told: chosen.append(choose(*told)) or chosen[-1])
    model = _settled(nn.Sequential(nn.Conv2d(128, 128, 1), nn.ReLU()))
    alone = DilatedConv2d(128, 128, 1)
    x = torch.randn(1, 128, 41, 41).to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with torch.no_grad():
        fused = fuse(model)
        alone(x)
        assert error(fused(x), model(x)) < 1e-5
        with conv_algorithm(forbid="direct"):
            fused(x)
        with conv_algorithm("torch"):
            fused(x)
    assert chosen == ["torch", "direct", "torch", "torch"]


def test_compiled_and_saved() -> None:
    model = _settled(ResNet())
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        fused = fuse(model)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        assert error(compiled(x), model(x)) < 1e-4
        again = fuse(_settled(ResNet()))
        again.load_state_dict(fused.state_dict())
        assert error(again(x), model(x)) < 1e-4


@pytest.mark.parametrize("bias", [False, True])
def test_dilated_conv2d_is_conv2d(bias: bool) -> None:
    theirs = nn.Conv2d(16, 20, 3, padding=2, dilation=2, bias=bias)
    ours = DilatedConv2d(16, 20, 3, padding=2, dilation=2, bias=bias, activation="relu")
    ours.load_state_dict(theirs.state_dict())
    x, residual = torch.randn(2, 16, 9, 11), torch.randn(2, 20, 9, 11)
    assert error(ours(x), theirs(x).relu()) < 1e-5
    assert error(ours(x, residual), (theirs(x) + residual).relu()) < 1e-5
    assert "16, 20, kernel_size=(3, 3)" in repr(ours)
    with pytest.raises(ValueError, match="activation must be None"):
        DilatedConv2d(1, 1, 1, activation="tanh")


@pytest.mark.parametrize("bias", [False, True])
def test_aspp_sum_module(bias: bool) -> None:
    module, x = ASPPSum(32, 7, (2, 5), bias=bias), torch.randn(1, 32, 12, 10)
    want = sum(
        torch.conv2d(x, module.weights[i], module.biases[i] if bias else None, padding=r, dilation=r)
        for i, r in enumerate((2, 5))
    )
    assert error(module(x), want) < 1e-5
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert "rates=(2, 5)" in repr(module)
