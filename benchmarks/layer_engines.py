"""The layer, the NumPy function beside it, and a layer that rebuilds its lattices, as engines for `benchmarks.layer`.

Results are what is compared: probabilities (L, N) of a forward pass, gradients in the logits (L, N) of a training step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.engines import Inputs, Run
from deeplab_crf import Bilateral, DenseCRF, Gaussian, dense_crf
from deeplab_crf.crf.exact import compatible
from deeplab_crf.crf.messages import walked_unary
from deeplab_crf.ops.lattice.operators import build_lattice

NUMPY = "dense_crf (NumPy)"
LAYER = "layer"
REBUILDING = "rebuilding"
TRAIN_LOGITS = "layer, gradient to logits"
TRAIN_WEIGHTS = "layer, and to weights"
TRAIN_ALL = "layer, and to bandwidths"
RECOMPUTE = "layer, to logits and weights, recompute"
IMPLICIT = "layer, to logits and weights, implicit"
TRAIN_REBUILDING = "rebuilding, gradient to logits"
BATCH = "one call"
CALLS = "a call each"

# What each training engine differentiates besides the logits, and how.
_TRAINING: dict[str, dict[str, Any]] = {
    TRAIN_LOGITS: {},
    TRAIN_WEIGHTS: {"trainable": ("weights",)},
    TRAIN_ALL: {"trainable": ("weights", "bandwidths")},
    RECOMPUTE: {"trainable": ("weights",), "gradients": "recompute"},
    IMPLICIT: {"trainable": ("weights",), "gradients": "implicit"},
}

BATCH_SIZE = 8


def kernels(case: Case) -> tuple[Gaussian, Bilateral]:
    """Of a case."""
    return Gaussian(*case.gaussian), Bilateral(*case.bilateral)


def tensors(case: Case, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, L, H, W) and the image (1, 3, H, W), uint8."""
    logits = torch.from_numpy(-inputs.unary).reshape(1, case.labels, case.height, case.width)
    return logits, torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())[None]


class NumpyFunction:
    """`deeplab_crf.dense_crf`: what the layer is to keep up with."""

    name = NUMPY

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def run(self, case: Case, inputs: Inputs) -> Run:
        """Lattices and iterations."""
        logits = -inputs.unary.reshape(case.labels, case.height, case.width)
        began = time.perf_counter()
        result = dense_crf(
            inputs.image, logits=logits, kernels=kernels(case), iterations=case.iterations, threads=self.threads
        )
        total = time.perf_counter() - began
        return Run(None, None, total, result.reshape(case.labels, -1))


class Forward:
    """A layer's forward pass without gradients."""

    def __init__(self, name: str, threads: int, make: Callable[[Case], torch.nn.Module]) -> None:
        self.name, self.threads, self._make = name, threads, make

    def run(self, case: Case, inputs: Inputs) -> Run:
        """The layer is made outside of the clock, its lattices within."""
        torch.set_num_threads(self.threads)
        crf = self._make(case)
        arguments = tensors(case, inputs)
        with torch.no_grad():
            began = time.perf_counter()
            refined = crf(*arguments)
            total = time.perf_counter() - began
        return Run(None, None, total, refined.exp().reshape(case.labels, -1).numpy())


class Training:
    """Forward and backward pass, from a gradient in the refined logits as a loss gives it."""

    def __init__(self, name: str, threads: int, make: Callable[[Case], torch.nn.Module]) -> None:
        self.name, self.threads, self._make = name, threads, make

    def run(self, case: Case, inputs: Inputs) -> Run:
        """The gradient is made outside of the clock."""
        torch.set_num_threads(self.threads)
        crf = self._make(case)
        logits, image = tensors(case, inputs)
        logits.requires_grad_()
        gradient = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        began = time.perf_counter()
        crf(logits, image).backward(gradient)
        total = time.perf_counter() - began
        return Run(None, None, total, logits.grad.reshape(case.labels, -1).numpy())


class Batch:
    """`BATCH_SIZE` different images, in one call or one after the other, without gradients."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads

    def run(self, case: Case, inputs: Inputs) -> Run:
        """Images are rolled copies of the one. The result holds the labels of all, (B * N,), and is the same either way."""
        torch.set_num_threads(self.threads)
        crf = make_layer(case)
        logits, image = tensors(case, inputs)
        shifts = range(0, 31 * BATCH_SIZE, 31)
        batch = [torch.cat([each.roll((s, s), (2, 3)) for s in shifts]) for each in (logits, image)]
        with torch.no_grad():
            began = time.perf_counter()
            if self.name == BATCH:
                refined = crf(*batch)
            else:
                refined = torch.cat([crf(*pair) for pair in zip(*(each.split(1) for each in batch), strict=True)])
            total = time.perf_counter() - began
        return Run(None, None, total, digest(refined))


def digest(refined: torch.Tensor) -> NDArray[Any]:
    """The bits of (B, L, H, W), folded to (B, H * W)."""
    return refined.contiguous().view(torch.int32).flatten(2).sum(dim=1).numpy()


def make_layer(case: Case, **options: Any) -> DenseCRF:
    """The layer of a case; nothing trains unless the options say so."""
    return DenseCRF(None, kernels(case), case.iterations, **options)


class RebuiltFilter(torch.autograd.Function):
    """The filter as crfasrnn_pytorch's PermutoFunction has it: features in, the lattice built in the call and thrown away, and
    built once more in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """values: (B, N, C). features: (B, N, d)."""
        ctx.save_for_backward(features)
        return build_lattice(features).filter(values)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """To the values alone."""
        return build_lattice(ctx.saved_tensors[0]).filter(grad, transpose=True), None


class RebuildingCRF(torch.nn.Module):
    """crfasrnn_pytorch's way on our lattice: features and norms once a call, the lattices at each filter, torch for the rest."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.crf = make_layer(case)

    def forward(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """As `DenseCRF.forward` with symmetric normalisation."""
        problem = self.crf.problem(logits, image)
        unary = walked_unary(problem)
        norms = [RebuiltFilter.apply(torch.ones_like(unary[..., :1]), points).rsqrt() for points in problem.features]
        log_q = torch.log_softmax(-unary, dim=-1)
        for _ in range(self.crf.iterations):
            q, pairwise = log_q.exp(), torch.zeros_like(unary)
            for points, norm, weight in zip(problem.features, norms, problem.compatibilities, strict=True):
                pairwise = pairwise + compatible(norm * RebuiltFilter.apply(norm * q, points), weight)
            log_q = torch.log_softmax(-unary - pairwise, dim=-1)
        back = torch.empty_like(problem.order, dtype=torch.int64)
        back[problem.order.long()] = torch.arange(len(back))
        return log_q[:, back].transpose(1, 2).reshape(logits.shape)


def find_engine(name: str, threads: int = 1) -> Any:
    """The engine called ``name``."""
    if name == NUMPY:
        return NumpyFunction(threads)
    if name in (BATCH, CALLS):
        return Batch(name, threads)
    if name in _TRAINING:
        return Training(name, threads, lambda case: make_layer(case, **_TRAINING[name]))
    if name == LAYER:
        return Forward(name, threads, make_layer)
    return {REBUILDING: Forward, TRAIN_REBUILDING: Training}[name](name, threads, RebuildingCRF)
