"""Gradients of DenseCRF against numerical ones, in double precision, away from the faces of simplices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import crf_samples
import pytest
import samples
import torch
from crf_samples import here

from deeplab_crf import Bilateral, DenseCRF, Gaussian
from deeplab_crf.core.pairwise import NORMALIZATIONS

pytestmark = pytest.mark.usefixtures("device")

B, L, H, W = 2, 3, 5, 6
WIDTHS = ((2.1, 1.7), (4.3, 3.1), (41.0, 37.0, 53.0))


def _layer(normalization: str, compatibility: str, **options: Any) -> DenseCRF:
    weight = 0.05 if normalization == "none" else 1.3
    kernels = (Gaussian(WIDTHS[0], weight), Bilateral(WIDTHS[1], WIDTHS[2], 1.1 * weight))
    trainable = ("weights", "bandwidths") + (() if compatibility == "potts" else ("compatibility",))
    options = {"iterations": 3, "trainable": trainable, **options}
    crf = DenseCRF(L, kernels, normalization=normalization, compatibility=compatibility, **options)
    if crf.compatibility is not None:
        with torch.no_grad():
            crf.compatibility.add_(0.3 * crf_samples.normal(*crf.compatibility.shape).float())
    return crf.double()


def _image() -> torch.Tensor:
    """Random colours whose bilateral features stay away from faces; the Gaussian's are the same for every image."""
    crf, found = _layer("symmetric", "potts"), []

    def features(generator: torch.Generator) -> torch.Tensor:
        image = 255 * here(torch.rand(B, 3, H, W, dtype=torch.float64, generator=generator, device="cpu"))
        found.append(image)
        return crf.problem(torch.zeros(B, L, H, W, dtype=torch.float64), image).features[1].detach()

    crf_samples.generic(features)
    return found[-1]


LOGITS = 2 * crf_samples.normal(B, L, H, W)
IMAGE = _image()


def _check(
    crf: DenseCRF, call: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], *, fast: bool = True
) -> None:
    """gradcheck in the inputs and in every parameter; fast: along random directions instead of entry by entry."""
    names = [name for name, _ in crf.named_parameters()]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in crf.parameters())

    def run(*leaves: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, leaves[len(inputs) :], strict=True))
        return torch.func.functional_call(crf, parameters, call(*leaves[: len(inputs)]))

    leaves = (*(leaf.detach().clone().requires_grad_() for leaf in inputs), *values)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=fast)


def test_the_sample_avoids_faces() -> None:
    assert all(crf_samples.is_generic(features) for features in _layer("none", "potts").problem(LOGITS, IMAGE).features)


@pytest.mark.parametrize("compatibility", ["potts", "diagonal", "matrix"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradcheck(normalization: str, compatibility: str) -> None:
    """Logits, image, weights, compatibility, bandwidths of each axis."""
    crf = _layer(normalization, compatibility)
    _check(crf, lambda logits, image: (logits, image), (LOGITS, IMAGE))


@pytest.mark.cpu_only  # others take as many seconds as it has entries; the tests above look along random directions there
def test_gradcheck_entry_by_entry() -> None:
    crf = _layer("symmetric", "matrix")
    _check(crf, lambda logits, image: (logits, image), (LOGITS, IMAGE), fast=False)


@pytest.mark.parametrize("gradients", ["recompute", "implicit"])
def test_gradcheck_of_the_other_modes(gradients: str) -> None:
    iterations = {"recompute": 5, "implicit": 60}[gradients]
    crf = _layer("symmetric", "matrix", gradients=gradients, iterations=iterations)
    _check(crf, lambda logits, image: (logits, image), (LOGITS, IMAGE))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradcheck_with_a_mask(normalization: str) -> None:
    mask = torch.ones(B, H, W, dtype=torch.bool)
    mask[0, 3:], mask[1, :, :2] = False, False
    crf = _layer(normalization, "diagonal")
    _check(crf, lambda logits, image: (logits, image, mask), (LOGITS, IMAGE))


def test_gradcheck_of_points() -> None:
    features = crf_samples.generic_features(B, 14, 5)
    points = features * torch.tensor([*WIDTHS[1], *WIDTHS[2]], dtype=torch.float64)
    crf = _layer("after", "matrix", image_range=(0, 255))
    logits = crf_samples.normal(B, L, 14)
    assert all(crf_samples.is_generic(each) for each in crf.problem(logits, points).features)
    _check(crf, lambda logits, points: (logits, points), (logits, points))


def test_gradcheck_of_a_volume() -> None:
    crf = DenseCRF(
        L,
        (Gaussian((2.1, 1.7, 3.3), 1.2),),
        3,
        spatial_dims=3,
        trainable=("weights", "bandwidths"),
        spacing=(1.0, 1.0, 2.2),
    ).double()
    logits = crf_samples.normal(1, L, 2, 3, 4)
    assert all(crf_samples.is_generic(each) for each in crf.problem(logits).features)
    _check(crf, lambda logits: (logits,), (logits,))


@pytest.mark.parametrize("gradients", ["store", "recompute", "implicit"])
def test_modes_agree_where_they_should(gradients: str) -> None:
    results = []
    for mode, iterations in ((gradients, 80), ("store", 80)):
        crf = _layer("symmetric", "matrix", gradients=mode, iterations=iterations)
        crf(LOGITS, IMAGE).square().mean().backward()
        results.append([parameter.grad for parameter in crf.parameters()])
    for got, want in zip(*results, strict=True):
        assert samples.scaled_error(got, want) < 1e-8


def test_a_gradient_step_lowers_the_loss() -> None:
    """Every parameter by itself: a wrong sign anywhere would raise it."""
    target = here(torch.randint(0, L, (B, H, W), generator=torch.Generator("cpu").manual_seed(0), device="cpu"))
    crf = _layer("symmetric", "matrix")

    def loss() -> torch.Tensor:
        return torch.nn.functional.nll_loss(crf(LOGITS, IMAGE), target)

    before = loss()
    gradients = torch.autograd.grad(before, list(crf.parameters()))
    for parameter, gradient in zip(crf.parameters(), gradients, strict=True):
        with torch.no_grad():
            parameter -= 1e-3 * gradient
            assert loss() < before
            parameter += 1e-3 * gradient


def test_float32_gradients_agree_with_float64() -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        crf = _layer("symmetric", "matrix")
        logits = LOGITS.detach().to(dtype, copy=True).requires_grad_()
        (crf(logits, IMAGE.float()).exp()[:, 0]).mean().backward()
        results.append([logits.grad, *(parameter.grad for parameter in crf.parameters())])
    for got, want in zip(*results, strict=True):
        assert samples.scaled_error(got / want.abs().max(), want / want.abs().max()) < 1e-3


def test_half_precision_gradients_come_back_in_it() -> None:
    logits = LOGITS.half().detach().requires_grad_()
    _layer("symmetric", "potts")(logits, IMAGE).float().square().mean().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float16
    assert torch.isfinite(logits.grad).all()


def test_exact_mode_has_gradients_too() -> None:
    crf = _layer("symmetric", "matrix", method="exact")
    _check(crf, lambda logits, image: (logits, image), (LOGITS[:1], IMAGE[:1]))
