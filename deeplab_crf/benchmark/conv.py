"""Time DeepLab's convolutions on this machine: ours against torch's in both layouts, the same input, results compared first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deeplab_crf.ops.conv.operators import aspp_sum, chosen_algorithm, dilated_conv2d

# Largest difference from torch's result, relative to the largest value, with which times are worth showing.
AGREEMENT = 1e-4

CLASSES = 21
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ConvCase:
    """One convolution of a network. rates: several of them are a sum of branches. epilogue: what the network has behind it, words
    out of "bias", "residual", "relu"."""

    name: str
    channels: int
    filters: int
    kernel: int
    height: int
    width: int
    stride: int = 1
    rates: tuple[int, ...] = (1,)
    epilogue: tuple[str, ...] = ("bias", "relu")

    @property
    def padding(self) -> int:
        """That of torch, which keeps the size at stride 1."""
        return self.rates[0] * (self.kernel // 2)

    def work(self) -> tuple[object, ...]:
        """What two cases have in common that cost the same."""
        return (
            self.channels,
            self.filters,
            self.kernel,
            self.height,
            self.width,
            self.stride,
            self.rates,
            self.epilogue,
        )


def _halved(size: int) -> int:
    """Behind a pooling of stride 2 in Caffe's rounding."""
    return -(-(size - 1) // 2) + 1


def _vgg(height: int, width: int) -> Iterator[ConvCase]:
    channels = 3
    for stage, (filters, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for i in range(1, count + 1):
            rate = 2 if stage == 5 else 1
            yield ConvCase(f"conv{stage}_{i}", channels, filters, 3, height, width, rates=(rate,))
            channels = filters
        if stage < 4:
            height, width = _halved(height), _halved(width)


def _stride_8(height: int, width: int) -> tuple[int, int]:
    for _ in range(3):
        height, width = _halved(height), _halved(width)
    return height, width


def _large_fov(height: int, width: int) -> Iterator[ConvCase]:
    yield from _vgg(height, width)
    size = _stride_8(height, width)
    yield ConvCase("fc6", 512, 1024, 3, *size, rates=(12,))
    yield ConvCase("fc7", 1024, 1024, 1, *size)
    yield ConvCase("fc8", 1024, CLASSES, 1, *size, epilogue=("bias",))


def _msc(height: int, width: int) -> Iterator[ConvCase]:
    yield from _large_fov(height, width)
    for name, channels in (("data", 3), ("pool1", 64), ("pool2", 128), ("pool3", 256), ("pool4", 512)):
        if name in ("pool1", "pool2", "pool3"):
            height, width = _halved(height), _halved(width)
        yield ConvCase(f"{name}_conv", channels, 128, 3, height, width)
        yield ConvCase(f"{name}_fc", 128, 128, 1, height, width)
        yield ConvCase(f"{name}_ms", 128, CLASSES, 1, height, width, epilogue=("bias",))


def _vgg_aspp(rates: Sequence[int], height: int, width: int) -> Iterator[ConvCase]:
    yield from _vgg(height, width)
    size = _stride_8(height, width)
    for rate in rates:
        yield ConvCase(f"fc6 rate {rate}", 512, 1024, 3, *size, rates=(rate,))
    yield ConvCase("fc7", 1024, 1024, 1, *size)
    yield ConvCase("fc8", 1024, CLASSES, 1, *size, epilogue=("bias",))


def _resnet(height: int, width: int) -> Iterator[ConvCase]:
    yield ConvCase("conv1", 3, 64, 7, height, width, stride=2)
    height, width = (height + 1) // 2, (width + 1) // 2
    height, width = _halved(height), _halved(width)
    channels = 64
    for stage, (filters, rate) in enumerate([(64, 1), (128, 1), (256, 2), (512, 4)], start=2):
        stride = 2 if stage == 3 else 1
        yield ConvCase(f"res{stage}a 1x1", channels, filters, 1, height, width, stride)
        yield ConvCase(f"res{stage}a shortcut", channels, 4 * filters, 1, height, width, stride, epilogue=("bias",))
        height, width = -(-height // stride), -(-width // stride)
        yield ConvCase(f"res{stage} 3x3", filters, filters, 3, height, width, rates=(rate,))
        channels = 4 * filters
        yield ConvCase(f"res{stage} 1x1 up", filters, channels, 1, height, width, epilogue=("bias", "residual", "relu"))
        yield ConvCase(f"res{stage} 1x1 down", channels, filters, 1, height, width)
    yield ConvCase("ASPP sum", channels, CLASSES, 3, height, width, rates=(6, 12, 18, 24), epilogue=("bias",))


MODELS: dict[str, Callable[[int, int], Iterator[ConvCase]]] = {
    "v1-largefov": _large_fov,
    "v1-msc": _msc,
    "v2-vgg-aspp-s": lambda height, width: _vgg_aspp((2, 4, 8, 12), height, width),
    "v2-vgg-aspp-l": lambda height, width: _vgg_aspp((6, 12, 18, 24), height, width),
    "v2-resnet101": _resnet,
}


def distinct_cases(models: Sequence[str], height: int, width: int) -> list[ConvCase]:
    """Every convolution of the models, those that cost the same once. height, width: of the network's input."""
    cases: dict[tuple[object, ...], ConvCase] = {}
    for model in models:
        for case in MODELS[model](height, width):
            cases.setdefault(case.work(), case)
    return list(cases.values())


@dataclass
class ConvResult:
    """Seconds of each turn, by (who, layout, whether with the epilogue). difference: of ours from torch's float64, relative."""

    case: ConvCase
    algorithm: str
    difference: float
    seconds: dict[tuple[str, str, bool], list[float]] = field(default_factory=dict)

    def best(self, who: str, layout: str, epilogue: bool) -> float:
        """The fastest turn: what other programs take from the machine only ever adds."""
        return min(self.seconds[who, layout, epilogue])

    def fastest_torch(self, epilogue: bool) -> float:
        """In its better layout."""
        return min(self.best("torch", layout, epilogue) for layout in LAYOUTS)

    def speedup(self, epilogue: bool) -> float:
        """Torch's better layout over ours in channels_last."""
        return self.fastest_torch(epilogue) / self.best("ours", "channels_last", epilogue)


class _Problem:
    def __init__(self, case: ConvCase, batch: int, layout: torch.memory_format) -> None:
        generator = torch.Generator().manual_seed(0)
        scale = (2 / (case.channels * case.kernel**2)) ** 0.5

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.case = case
        self.x = normal(batch, case.channels, case.height, case.width).clamp_min(0).contiguous(memory_format=layout)
        weights = [normal(case.filters, case.channels, case.kernel, case.kernel) * scale for _ in case.rates]
        self.weights = [weight.contiguous(memory_format=layout) for weight in weights]
        self.biases = [normal(case.filters) for _ in case.rates]
        self.residual = self.by_torch(False).clone()

    def by_torch(self, epilogue: bool) -> Tensor:
        case, bias = self.case, epilogue and "bias" in self.case.epilogue
        y = None
        for i, rate in enumerate(case.rates):
            part = torch.conv2d(
                self.x, self.weights[i], self.biases[i] if bias else None, case.stride, rate * (case.kernel // 2), rate
            )
            y = part if y is None else y.add_(part)
        assert y is not None
        if epilogue and "residual" in case.epilogue:
            y += self.residual
        return y.relu_() if epilogue and "relu" in case.epilogue else y

    def by_us(self, epilogue: bool) -> Tensor:
        case, bias = self.case, epilogue and "bias" in self.case.epilogue
        if len(case.rates) > 1:
            return aspp_sum(self.x, self.weights, self.biases if bias else None, case.rates)
        return dilated_conv2d(
            self.x,
            self.weights[0],
            self.biases[0] if bias else None,
            stride=case.stride,
            padding=case.padding,
            dilation=case.rates[0],
            activation="relu" if epilogue and "relu" in case.epilogue else None,
            residual=self.residual if epilogue and "residual" in case.epilogue else None,
        )

    def difference(self) -> float:
        got, want = self.by_us(True), self.by_torch(True)
        return float((got - want).abs().max() / want.abs().max())

    def algorithm(self) -> str:
        case = self.case
        if len(case.rates) > 1:
            return "shifted"
        return chosen_algorithm(
            self.x, self.weights[0], stride=case.stride, padding=case.padding, dilation=case.rates[0]
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch's thread count, and so ours, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(case: ConvCase, *, batch: int = 1, threads: int = 1, repeats: int = 5) -> ConvResult:
    """Compare the results, then time everybody in turn, ``repeats`` times. Raises ValueError if ours differ from torch's by more
    than `AGREEMENT` of the largest value."""
    with torch.inference_mode(), torch_threads(threads):
        problems = {name: _Problem(case, batch, layout) for name, layout in LAYOUTS.items()}
        difference = max(problem.difference() for problem in problems.values())
        if not difference <= AGREEMENT:
            raise ValueError(f"{case}: results differ by {difference:.1e} of the largest value; times would mislead")
        result = ConvResult(case, problems["channels_last"].algorithm(), difference)
        contestants = {
            (who, layout, epilogue): getattr(problem, f"by_{'torch' if who == 'torch' else 'us'}")
            for layout, problem in problems.items()
            for who in ("torch", "ours")
            for epilogue in (False, True)
        }
        # One thread's own time leaves out that in which the processor was given to other programs.
        clock = time.thread_time if threads == 1 else time.perf_counter
        for _ in range(repeats):
            for key, run in contestants.items():
                run(key[2])  # so that none pays for memory that the one before gave back to the system
                start = clock()
                run(key[2])
                result.seconds.setdefault(key, []).append(clock() - start)
    return result
