"""DenseCRFLoss: rloss's numbers, recomputed step by step on the oracle's lattice, and the exact gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import samples
import torch
from crf_samples import here
from devices import Device

from deeplab_crf.crf.losses import DenseCRFLoss

pytestmark = pytest.mark.usefixtures("device")

HEIGHT, WIDTH, LABELS = 12, 15, 3
SETTINGS = {"weight": 0.01, "sigma_rgb": 15.0, "sigma_xy": 6.0}


def inputs(dtype: Any = torch.float64, batch: int = 2) -> tuple[Any, Any, Any]:
    """Probabilities (B, L, H, W), images (B, 3, H, W) in 0..255 and a roi (B, H, W)."""
    generator = torch.Generator("cpu").manual_seed(0)
    logits = 2 * here(torch.randn(batch, LABELS, HEIGHT, WIDTH, generator=generator, dtype=dtype, device="cpu"))
    image = np.stack([samples.photo(HEIGHT, WIDTH, seed=seed) for seed in range(batch)])
    roi = here(torch.rand(batch, HEIGHT, WIDTH, generator=generator, device="cpu")) < 0.8
    return logits.softmax(1), here(torch.from_numpy(image)).permute(0, 3, 1, 2).to(dtype), roi


def rloss(probabilities: Any, image: Any, roi: Any, scale: float) -> tuple[float, np.ndarray]:
    """What rloss does, on the oracle: the loss, and W S + W^T S (B, L, h, w) of what it is computed from."""
    resize = torch.nn.functional.interpolate
    if scale != 1:
        image = resize(image, scale_factor=scale)
        probabilities = resize(probabilities, scale_factor=scale, mode="bilinear", align_corners=False)
        roi = resize(roi[:, None].double(), scale_factor=scale)[:, 0]
    segmentations = (probabilities * roi[:, None]).cpu().numpy()
    total, both = 0.0, np.empty_like(segmentations)
    for number, (one, picture) in enumerate(zip(segmentations, image.cpu().numpy(), strict=True)):
        colours = picture.transpose(1, 2, 0)
        features = oracle.bilateral_features(colours, SETTINGS["sigma_xy"] * scale, SETTINGS["sigma_rgb"], np.float64)
        lattice = oracle.Lattice(features)
        columns = one.reshape(LABELS, -1).T
        filtered = lattice.apply(columns)
        total -= float((columns * filtered).sum())
        both[number] = (filtered + lattice.apply(columns, transpose=True)).T.reshape(one.shape)
    return SETTINGS["weight"] * total / len(segmentations), both


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.4])
def test_is_the_loss_of_rloss(scale: float) -> None:
    probabilities, image, roi = inputs()
    loss = DenseCRFLoss(**SETTINGS, scale_factor=scale)(probabilities, image, roi)
    want, _ = rloss(probabilities, image, roi, scale)
    assert want < -0.1
    assert loss.item() == pytest.approx(want, rel=1e-12)


def test_without_roi_every_pixel_counts() -> None:
    probabilities, image, roi = inputs()
    layer = DenseCRFLoss(**SETTINGS)
    assert layer(probabilities, image) == layer(probabilities, image, torch.ones_like(roi))
    assert layer(probabilities, image) < layer(probabilities, image, roi)


def test_gradient_is_exact() -> None:
    probabilities, image, roi = inputs()
    probabilities.requires_grad_()
    DenseCRFLoss(**SETTINGS, scale_factor=1)(probabilities, image, roi).backward()
    _, both = rloss(probabilities.detach(), image, roi, 1.0)
    want = -SETTINGS["weight"] / len(both) * both * roi[:, None].cpu().numpy()
    assert (
        samples.scaled_error(probabilities.grad.cpu().numpy() / np.abs(want).max(), want / np.abs(want).max()) < 1e-12
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradcheck(device: Device, scale: float) -> None:
    probabilities, image, roi = (tensor[:, ..., :6, :8] for tensor in inputs())
    layer = DenseCRFLoss(**SETTINGS, scale_factor=scale)
    probabilities = probabilities.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values: layer(values, image, roi), (probabilities,), fast_mode=not device.is_reference
    )
    assert torch.autograd.gradgradcheck(
        lambda values: layer(values, image, roi), (probabilities,), fast_mode=not device.is_reference
    )


def test_descent_makes_pixels_of_one_colour_agree() -> None:
    """From scores that are noise but for a hint."""
    _, image, _ = inputs(torch.float32)
    bright = image[:, 0] > image[:, 0].mean((1, 2), keepdim=True)
    logits = 0.3 * here(torch.randn(2, 2, HEIGHT, WIDTH, generator=torch.Generator("cpu").manual_seed(1), device="cpu"))
    logits[:, 0] += 0.1 * bright - 0.05

    def contrast() -> float:
        labels = logits.argmax(1).double()
        return float((labels[bright].mean() - labels[~bright].mean()).abs())

    layer = DenseCRFLoss(**SETTINGS, scale_factor=1)
    before, losses = contrast(), []
    for _ in range(30):
        logits.requires_grad_()
        loss = layer(logits.softmax(1), image)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 20 * gradient).detach()
    assert losses[-1] < losses[0]
    assert before < 0.2
    assert contrast() > 0.6


def test_what_is_outside_the_roi_does_not_count() -> None:
    probabilities, image, roi = inputs(torch.float32)
    roi[:, :, 10:] = False
    changed = torch.where(roi[:, None], probabilities, 1 - probabilities)
    layer = DenseCRFLoss(**SETTINGS, scale_factor=1)
    assert layer(probabilities, image, roi) == layer(changed, image, roi)


def test_is_the_mean_over_the_images() -> None:
    probabilities, image, roi = inputs()
    layer = DenseCRFLoss(**SETTINGS)
    alone = [layer(*(tensor[i : i + 1] for tensor in (probabilities, image, roi))).item() for i in range(2)]
    assert layer(probabilities, image, roi).item() == pytest.approx(np.mean(alone), rel=1e-12)


def test_integer_images_and_half_precision() -> None:
    probabilities, image, roi = inputs(torch.float32)
    layer = DenseCRFLoss(**SETTINGS)
    want = layer(probabilities, image, roi)
    assert layer(probabilities, image.to(torch.uint8), roi) == want
    half = layer(probabilities.half(), image.to(torch.uint8), roi)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(want.item(), rel=1e-3)


def test_defaults_are_those_of_the_paper_and_show_in_the_repr() -> None:
    assert repr(DenseCRFLoss()) == "DenseCRFLoss(weight=2e-09, sigma_rgb=15.0, sigma_xy=100.0, scale_factor=0.5)"
    assert (
        repr(DenseCRFLoss(1e-7, 10, 80, 1)) == "DenseCRFLoss(weight=1e-07, sigma_rgb=10, sigma_xy=80, scale_factor=1)"
    )


def test_the_range_of_the_image() -> None:
    probabilities, image, roi = inputs()
    message = (
        r"image must be in 0\.\.255.*got float64 with values in 0\.16.*image_range=\(0, 1\).*image_range=\(0, 255\)"
    )
    with pytest.raises(ValueError, match=message):
        DenseCRFLoss(**SETTINGS)(probabilities, image / 255, roi)
    want = DenseCRFLoss(**SETTINGS)(probabilities, image, roi)
    got = DenseCRFLoss(**SETTINGS, image_range=(0, 1))(probabilities, image / 255, roi)
    assert got.item() == pytest.approx(want.item(), rel=1e-9)
    kept = DenseCRFLoss(**SETTINGS, image_range=(0, 255))(probabilities, image / 255, roi)
    assert kept.item() != pytest.approx(want.item(), rel=1e-2)


def test_pixels_outside_the_roi_do_not_tell_the_range() -> None:
    probabilities, image, roi = inputs()
    roi = torch.ones_like(roi)
    roi[:, :, 9:] = 0
    loss = DenseCRFLoss(**{**SETTINGS, "scale_factor": 1.0})
    want = loss(probabilities, image, roi)
    for inside in (roi, roi.bool()):
        got = loss(probabilities, image.masked_fill(roi[:, None] == 0, -1000.0), inside)
        assert got.item() == pytest.approx(want.item(), rel=0.05)
    with pytest.raises(ValueError, match=r"image must be in 0\.\.255"):
        DenseCRFLoss(**SETTINGS)(probabilities, (image / 255).masked_fill(roi[:, None] == 0, 255.0), roi)


def test_a_scale_that_leaves_no_pixel() -> None:
    with pytest.raises(ValueError, match=r"scale_factor must leave a pixel of maps of 12 x 15 \(H x W\); got 0.05"):
        DenseCRFLoss(scale_factor=0.05)(*inputs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": torch.rand(3, 12, 15)}, r"probabilities must have shape \(B, C, H, W\).*got \(3, 12, 15\)"),
        ({"image": torch.rand(2, 3, 12, 14)}, r"image must have shape \(2, channels, 12, 15\); got \(2, 3, 12, 14\)"),
        ({"image": torch.rand(1, 3, 12, 15)}, r"image must have shape \(2, channels, 12, 15\); got \(1, 3, 12, 15\)"),
        ({"roi": torch.rand(2, 1, 12, 15)}, r"roi must have shape \(2, 12, 15\); got \(2, 1, 12, 15\)"),
    ],
)
def test_wrong_shapes(change: dict[str, Any], message: str) -> None:
    arguments = dict(zip(("probabilities", "image", "roi"), inputs(), strict=True))
    with pytest.raises(ValueError, match=message):
        DenseCRFLoss()(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda p, i, r: (torch.logit(p), i, r), ValueError, r"probabilities must be in 0\.\.1; got -.*torch\.softmax"),
        (lambda p, i, r: (p.log(), i, r), ValueError, r"probabilities must be in 0\.\.1; got -.*torch\.softmax"),
        (lambda p, i, r: (p.cpu().numpy(), i, r), TypeError, "probabilities must be a torch.Tensor; got ndarray"),
        (lambda p, i, r: (p > 0.5, i, r), TypeError, "probabilities must be floating point; got torch.bool"),
        (lambda p, i, r: (p, i.cpu().numpy(), r), TypeError, "image must be a torch.Tensor; got ndarray"),
        (lambda p, i, r: (p, i, r.cpu().numpy()), TypeError, "roi must be a torch.Tensor; got ndarray"),
        (lambda p, i, r: (p, i, r.to("meta")), ValueError, "roi must be on the device of probabilities.*got meta"),
        (lambda p, i, r: (p, i, r * 255), ValueError, r"roi must hold weights in 0\.\.1; got 0\.\.255\. .* roi > 0"),
        (lambda p, i, r: (p, i, r.double() - 0.5), ValueError, r"roi must hold weights in 0\.\.1; got -0\.5"),
        (lambda p, i, r: (p, i, r / r), ValueError, r"roi must hold weights in 0\.\.1; got nan"),
        (lambda p, i, r: (p, i, r + 0j), TypeError, r"roi must hold real numbers; got torch\.complex"),
        (lambda p, i, r: (p, i + 0j, r), TypeError, r"image must hold real numbers; got torch\.complex"),
        (lambda p, i, r: (p, i[:, :0], r), ValueError, r"image must have shape.*got \(2, 0, "),
        (lambda p, i, r: (p[:0], i[:0], r[:0]), ValueError, r"probabilities must have shape.*got \(0, "),
    ],
)
def test_what_is_no_probability_or_no_tensor(
    change: Callable[..., tuple[Any, ...]], kind: type[Exception], message: str
) -> None:
    probabilities, image, roi = inputs()
    with pytest.raises(kind, match=message):
        DenseCRFLoss(**SETTINGS)(*change(probabilities, image, roi))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_rgb": 0.0}, "srgb must be positive"),
        ({"sigma_xy": -1.0}, "sxy must be positive"),
        ({"scale_factor": 0.0}, r"scale_factor must be in \(0, 1\]; got 0.0"),
        ({"scale_factor": 2.0}, r"scale_factor must be in \(0, 1\]; got 2.0"),
        ({"weight": float("nan")}, "weight must be finite"),
    ],
)
def test_wrong_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCRFLoss(**settings)
