"""Convolutions to measure on a GPU: DeepLab's, in each precision, by torch and by each of our algorithms that can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import Body
from benchmarks.gpu.context import Context
from deeplab_crf import aspp_sum, conv_algorithm, dilated_conv2d
from deeplab_crf.benchmark.conv import MODELS, ConvCase, distinct_cases

SIZE = 513
BATCHES = (1, 8, 16)
TINY_CASES = [
    ConvCase("3x3", 20, 24, 3, 9, 11, rates=(2,)),
    ConvCase("1x1 up", 16, 40, 1, 9, 11, epilogue=("bias", "residual", "relu")),
    ConvCase("7x7", 3, 8, 7, 9, 11, stride=2),
    ConvCase("ASPP sum", 20, 5, 3, 9, 11, rates=(2, 4), epilogue=("bias",)),
]

# Who computes: the peer; what `dilated_conv2d` and `aspp_sum` can take; what they could take, cuDNN's convolution with an epilogue
# of its own.
TORCH, EPILOGUE, WINOGRAD, SHIFTED, CUDNN = "torch", "torch + our epilogue", "Winograd", "shifted", "cuDNN fused"
OURS = (EPILOGUE, WINOGRAD, SHIFTED)


@dataclass(frozen=True)
class Precision:
    """bound: of the difference from float64 on the same inputs, relative to the largest value."""

    name: str
    dtype: torch.dtype
    rounds: bool
    bound: float


# cuDNN may take Winograd for float32.
FP32 = Precision("fp32", torch.float32, False, 1e-4)
PRECISIONS = (
    FP32,
    Precision("TF32", torch.float32, True, 2e-3),
    Precision("bf16", torch.bfloat16, False, 2e-2),
)


@contextmanager
def precision_of(precision: Precision) -> Iterator[None]:
    """Torch's switches for a while; with cuDNN's search for the fastest algorithm."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = precision.rounds
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=precision.rounds):
            yield
    finally:
        matmul.allow_tf32 = before


def conv_cases(context: Context) -> list[ConvCase]:
    """Every distinct convolution of DeepLab's networks."""
    return TINY_CASES if context.rehearsal else distinct_cases(tuple(MODELS), SIZE, SIZE)


class ConvProblem:
    """A convolution with its epilogue, channels_last, on a device."""

    def __init__(self, case: ConvCase, batch: int, precision: Precision, device: str) -> None:
        self.case, self.precision = case, precision
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            made = torch.randn(shape, generator=generator, device=device).to(precision.dtype)
            return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

        scale = (2 / (case.channels * case.kernel**2)) ** 0.5
        kernel = (case.filters, case.channels, case.kernel, case.kernel)
        self.x = normal(batch, case.channels, case.height, case.width).clamp_min_(0)
        self.weights = [normal(*kernel).mul_(scale) for _ in case.rates]
        self.biases = [normal(case.filters) for _ in case.rates]
        out = (-(-size // case.stride) for size in (case.height, case.width))
        self.residual = normal(batch, case.filters, *out) if "residual" in case.epilogue else None

    def contestants(self) -> dict[str, Body]:
        """By name, the peer first."""
        case = self.case
        found: dict[str, Body] = {TORCH: self.by_torch, EPILOGUE: partial(self.by_us, "torch")}
        if len(case.rates) > 1:
            found[SHIFTED] = partial(self.by_us, "shifted")
        elif case.kernel == 3 and case.stride == 1 and self.precision == FP32:
            found[WINOGRAD] = partial(self.by_us, "winograd")
        if self.x.is_cuda and "relu" in case.epilogue:
            found[CUDNN] = self.by_cudnn
        return found

    def by_torch(self) -> Tensor:
        """The convolutions, their sum, the residual, the ReLU."""
        return self._convolved(self.x, self.weights, self.biases, self.residual)

    def exact(self) -> Tensor:
        """In float64, without a search for the fastest algorithm."""
        weights, biases = ([each.double() for each in part] for part in (self.weights, self.biases))
        residual = None if self.residual is None else self.residual.double()
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            return self._convolved(self.x.double(), weights, biases, residual)

    def by_us(self, algorithm: str) -> Tensor:
        """By one of our algorithms."""
        case = self.case
        with conv_algorithm(algorithm):
            if len(case.rates) > 1:
                return aspp_sum(self.x, self.weights, self.biases, case.rates)
            return dilated_conv2d(
                self.x,
                self.weights[0],
                self.biases[0],
                stride=case.stride,
                padding=case.padding,
                dilation=case.rates[0],
                activation="relu" if "relu" in case.epilogue else None,
                residual=self.residual,
            )

    def by_cudnn(self) -> Tensor:
        """By cuDNN's convolution with bias, residual and ReLU."""
        case = self.case
        stride, padding, dilation = ([size, size] for size in (case.stride, case.padding, case.rates[0]))
        x, weight, bias = self.x, self.weights[0], self.biases[0]
        if self.residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, 1)
        return torch.cudnn_convolution_add_relu(x, weight, self.residual, 1.0, bias, stride, padding, dilation, 1)

    def _convolved(self, x: Tensor, weights: list[Tensor], biases: list[Tensor], residual: Tensor | None) -> Tensor:
        case, total = self.case, residual
        for weight, bias, rate in zip(weights, biases, case.rates, strict=True):
            part = torch.conv2d(x, weight, bias, case.stride, rate * (case.kernel // 2), rate)
            total = part if total is None else part.add_(total)
        assert total is not None
        return total.relu_() if "relu" in case.epilogue else total
