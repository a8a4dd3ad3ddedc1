"""torch.compile and torch.export of a small network that ends in DenseCRF: the results of eager mode."""

from __future__ import annotations

import copy
import shutil

import crf_samples
import pytest
import torch

from deeplab_crf import Bilateral, DenseCRF, Gaussian

L, SIZE = 4, (18, 21)
BACKEND = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"

pytestmark = [
    pytest.mark.usefixtures("device", "whole_graphs"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, which differ from version to version
]


class Network(torch.nn.Module):
    """One convolution and a CRF on the image that it saw."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, L, 3, padding=1)
        kernels = (Gaussian(2.5, 2), Bilateral(30, 20, 4))
        self.crf = DenseCRF(
            L, kernels, 4, compatibility="matrix", trainable=("weights", "compatibility", "bandwidths"), **options
        )

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Refined logits (B, L, H, W)."""
        return self.crf(self.convolution(image / 255), image, mask)


IMAGE = crf_samples.photos(2, *SIZE)
MASK = torch.arange(SIZE[1]).expand(2, *SIZE) < 17


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def _gradients(network: torch.nn.Module, out: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(out.exp()[:, 1].mean(), list(network.parameters())))


@pytest.mark.parametrize("gradients", ["store", "recompute", "implicit"])
def test_compiled_training_is_eager_training(gradients: str) -> None:
    network = Network(gradients=gradients)
    compiled = torch.compile(network, fullgraph=True, backend=BACKEND, dynamic=False)
    want, got = network(IMAGE), compiled(IMAGE)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for one, other in zip(_gradients(network, got), _gradients(network, want), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_compiled_inference_with_a_mask() -> None:
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend=BACKEND, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGE, MASK), network(IMAGE, MASK), rtol=1e-4, atol=1e-4)


def test_compiled_with_dynamic_shapes() -> None:
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for height, width in (SIZE, (23, 30), (70, 33)):
        image = crf_samples.photos(1, height, width)
        torch.testing.assert_close(compiled(image), network(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    """Of a size that eager mode has not seen: nothing that the export makes may be kept for it."""
    network, size = Network().eval(), (19, 23 + strict)
    mask = torch.arange(size[1]).expand(2, *size) < 17
    program = torch.export.export(network, (crf_samples.photos(2, *size), mask), strict=strict)
    other = crf_samples.photos(2, *size, seed=9)
    torch.testing.assert_close(program.module()(other, mask), network(other, mask), rtol=1e-4, atol=1e-4)


def test_export_with_a_dynamic_batch() -> None:
    network = Network().eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(network, (IMAGE,), dynamic_shapes=({0: batch},), strict=False)
    other = crf_samples.photos(3, *SIZE, seed=4)
    torch.testing.assert_close(program.module()(other), network(other), rtol=1e-4, atol=1e-4)


def test_compiling_leaves_nothing_fake_behind() -> None:
    """Eager mode after compilation, and a copy, work as before."""
    network = Network()
    want = network(IMAGE)
    torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=False)(IMAGE)
    assert torch.equal(network(IMAGE), want)
    assert torch.equal(copy.deepcopy(network)(IMAGE), want)
