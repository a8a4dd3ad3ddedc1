"""Logits of -inf, as of a class that is masked out: the bits of the smallest float32 in their place, and finite gradients."""

from __future__ import annotations

from typing import Any

import crf_samples
import pytest
import torch
from devices import Device

from deeplab_crf import Bilateral, DenseCRF, Gaussian, diagnose, entropy, error_report

pytestmark = pytest.mark.usefixtures("device")

L, SIZE = 4, (9, 8)
KERNELS = (Gaussian(2, 2), Bilateral(20, 15, 3))
TRAINED = ("weights", "compatibility", "bandwidths")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def _masked(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SIZE) -> torch.Tensor:
    """Logits (2, L, *shape), a label excluded from each pixel of the upper rows."""
    logits = crf_samples.normal(2, L, *shape)
    excluded = torch.zeros(2, L, *shape, dtype=torch.bool)
    excluded[:, 1, :4] = excluded[1, 2:, 2] = True
    return logits.masked_fill(excluded.to(logits.device), -torch.inf).to(dtype)


def _capped(logits: torch.Tensor) -> torch.Tensor:
    return logits.clamp(min=-torch.finfo(torch.float32).max)


def _image() -> torch.Tensor:
    return crf_samples.photos(2, *SIZE)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "exact"}, {"damping": 0.3, "tolerance": 1e-3}, {"method": "exact", "damping": 0.3}],
    ids=["lattice", "exact", "damped", "exact, damped"],
)
def test_bits_of_the_capped_logits(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits = _masked(dtype)
    crf = DenseCRF(L, KERNELS, **options)
    got = crf(logits, _image())
    assert torch.equal(got, crf(_capped(logits), _image()))
    assert (got.exp()[torch.isinf(logits)] < 1e-20).all()
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.parametrize("gradients", ["store", "recompute", "implicit"])
def test_gradients_are_finite(gradients: str, method: str, dtype: torch.dtype) -> None:
    logits = _masked(dtype).requires_grad_()
    image = _image().requires_grad_()
    crf = DenseCRF(L, KERNELS, 3, compatibility="matrix", trainable=TRAINED, method=method, gradients=gradients)
    refined = crf(logits, image)
    assert refined.dtype == dtype
    assert not torch.isnan(refined).any()
    leaves = [logits, image, *crf.parameters()]
    labels = logits.detach().argmax(1)
    for loss in (torch.nn.functional.cross_entropy(refined.float(), labels), refined.exp()[:, 0].sum()):
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves, retain_graph=True), strict=True):
            assert torch.isfinite(gradient).all(), leaf.shape
            assert (gradient != 0).any()


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_gradients_are_those_of_a_small_finite_logit(method: str) -> None:
    small = _masked().clamp(min=-60.0)
    crf = DenseCRF(L, KERNELS, 3, trainable=("weights", "bandwidths"), method=method)
    found = []
    for given in (_masked(), small):
        logits = given.requires_grad_()
        loss = torch.nn.functional.nll_loss(crf(logits, _image()), small.argmax(1))
        found.append(torch.autograd.grad(loss, [logits, *crf.parameters()]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_volumes_and_points(method: str) -> None:
    volume = DenseCRF(L, (Gaussian(2, 2),), spatial_dims=3, method=method)
    logits = _masked(shape=(5, 4, 3))
    assert torch.equal(volume(logits), volume(_capped(logits)))
    points = DenseCRF(L, (Gaussian(1, 2),), method=method)
    flat, places = _masked(shape=(30,)), crf_samples.normal(2, 30, 2)
    assert torch.equal(points(flat, places), points(_capped(flat), places))


def test_half_precision_is_that_of_single() -> None:
    crf, half = DenseCRF(L, KERNELS), _masked(torch.float16)
    got = crf(half, _image())
    assert torch.equal(got, crf(half.float(), _image()).half())
    assert torch.equal(torch.isinf(got), torch.isinf(half))
    assert torch.isfinite(entropy(got)).all()


@pytest.mark.parametrize("method", ["lattice", "exact"])
@pytest.mark.parametrize(
    ("labels", "value", "message"),
    [
        (slice(None), -torch.inf, r" for at least one label .* -inf for all labels of point 28 of image 1\. Give"),
        (2, torch.inf, r"; got inf for label 2 of point 28 of image 1\. Only -inf is taken too"),
        (2, torch.nan, "; got nan for label 2 of point 28 of image 1"),
    ],
    ids=["nothing left", "inf", "nan"],
)
def test_what_stays_an_error(labels: Any, value: float, message: str, method: str) -> None:
    logits = _masked()
    logits[1, labels, 3, 4] = value
    with pytest.raises(ValueError, match="logits must be finite" + message):
        DenseCRF(L, KERNELS, method=method)(logits, _image())


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_diagnosis_is_finite(method: str) -> None:
    crf, logits = DenseCRF(L, KERNELS, method=method), _masked()
    found, want = diagnose(crf, logits, _image()), diagnose(crf, _capped(logits), _image())
    assert torch.equal(found.logits, want.logits)
    for name in ("free_energy", "entropy_term", "label_changes", "largest_moves"):
        assert torch.isfinite(getattr(found, name)).all(), name
    assert torch.isfinite(entropy(found.logits)).all()
    assert error_report({"one": crf}, logits, _image()).settings[0].max_error < 0.5


def test_entropy_of_masked_logits() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    torch.testing.assert_close(entropy(logits), torch.tensor([2.0]).log())


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_accepts_what_the_layer_does() -> None:
    with torch.autograd.detect_anomaly(check_nan=True):
        assert torch.isfinite(DenseCRF(L, KERNELS)(_masked(), _image())).all()


def test_a_compiled_exact_layer(device: Device) -> None:
    if device.name != "cpu":
        pytest.skip("the exact method has no kernels of a device")
    torch.compiler.reset()
    crf = DenseCRF(L, KERNELS, 2, method="exact")
    compiled = torch.compile(crf, backend="eager")
    torch.testing.assert_close(compiled(_masked(), _image()), crf(_masked(), _image()))
