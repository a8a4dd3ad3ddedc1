"""The filters as functions: against the oracle, their gradients, and what joint bilateral upsampling is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
import torch
from crf_samples import here
from devices import Device

from deeplab_crf.crf.filters import bilateral_filter, permutohedral_filter

pytestmark = pytest.mark.usefixtures("device")

HEIGHT, WIDTH = 14, 17
NORMALIZATIONS = ["none", "before", "after", "symmetric"]


def guide(batch: int = 1, dtype: Any = torch.float64) -> Any:
    """(B, 3, H, W) in 0..255."""
    pictures = np.stack([samples.photo(HEIGHT, WIDTH, seed=seed) for seed in range(batch)])
    return here(torch.from_numpy(pictures)).permute(0, 3, 1, 2).to(dtype)


def maps(batch: int = 1, size: tuple[int, int] = (HEIGHT, WIDTH), dtype: Any = torch.float64) -> Any:
    """(B, 2, h, w) normal deviates."""
    return here(
        torch.randn(batch, 2, *size, generator=torch.Generator("cpu").manual_seed(4), dtype=dtype, device="cpu")
    )


def columns(tensor: Any) -> np.ndarray:
    """(C, H, W) as (N, C)."""
    return tensor.detach().double().cpu().numpy().reshape(len(tensor), -1).T


# --------------------------------------------------------------------------------------------------------------------- points
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_permutohedral_filter_equals_the_oracle(normalization: str, dtype: Any) -> None:
    features = np.stack([samples.features(60, 3, seed, np.float64) for seed in range(2)])
    values = np.stack([samples.values(60, 4, seed, np.float64) for seed in range(2)])
    got = permutohedral_filter(
        torch.tensor(values, dtype=dtype), torch.tensor(features, dtype=dtype), normalization=normalization
    )
    kind = np.float32 if dtype == torch.float32 else np.float64
    assert got.dtype == dtype
    for image in range(2):
        want = oracle.normalized_filter(oracle.Lattice(features[image], kind), values[image], normalization)
        assert samples.scaled_error(got[image].cpu().numpy(), want) <= samples.TOLERANCE[np.dtype(kind)]


def test_permutohedral_filter_of_one_set_of_points() -> None:
    features, values = torch.tensor(samples.features(60, 3)), torch.tensor(samples.values(60, 4))
    alone = permutohedral_filter(values, features)
    assert alone.shape == values.shape
    assert torch.equal(alone, permutohedral_filter(values[None], features[None])[0])


def test_permutohedral_filter_in_half_precision() -> None:
    features, values = torch.tensor(samples.features(60, 3)), torch.tensor(samples.values(60, 4))
    got = permutohedral_filter(values.half(), features)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), permutohedral_filter(values, features), atol=2e-3, rtol=0)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_permutohedral_filter_gradients(device: Device, normalization: str) -> None:
    features = torch.tensor(samples.features(9, 2, dtype=np.float64), requires_grad=True)
    values = torch.tensor(samples.values(9, 2, dtype=np.float64), requires_grad=True)

    def run(columns: Any, points: Any) -> Any:
        return permutohedral_filter(columns, points, normalization=normalization)

    assert torch.autograd.gradcheck(run, (values, features), fast_mode=not device.is_reference)
    assert torch.autograd.gradgradcheck(lambda columns: run(columns, features.detach()), (values,))


@pytest.mark.parametrize(
    ("values", "features"),
    [((5,), (5, 2)), ((5, 1), (1, 5, 2)), ((5, 1), (6, 2)), ((2, 5, 1), (1, 5, 2)), ((1, 1, 5, 1), (1, 1, 5, 2))],
)
def test_permutohedral_filter_of_wrong_shapes(values: tuple[int, ...], features: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"values and features must have shapes \(N, C\) and \(N, d\)"):
        permutohedral_filter(torch.zeros(values), torch.zeros(features))


def test_permutohedral_filter_refuses_nan() -> None:
    with pytest.raises(ValueError, match="features must be finite"):
        permutohedral_filter(torch.zeros(5, 1), torch.full((5, 2), torch.nan))


# --------------------------------------------------------------------------------------------------------------------- pictures
def test_bilateral_filter_equals_the_oracle() -> None:
    pictures, values = guide(2), maps(2)
    got = bilateral_filter(values, pictures, (5.0, 7.0), (20.0, 30.0, 25.0))
    for image in range(2):
        colours = pictures[image].permute(1, 2, 0).cpu().numpy()
        lattice = oracle.Lattice(oracle.bilateral_features(colours, (5.0, 7.0), (20.0, 30.0, 25.0), np.float64))
        want = oracle.normalized_filter(lattice, columns(values[image]), "after")
        assert samples.scaled_error(columns(got[image]), want) <= 1e-12


def test_bilateral_filter_fills_in_from_what_is_known() -> None:
    values, picture = maps(), guide()
    known = here(
        torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator("cpu").manual_seed(5), dtype=torch.float64, device="cpu")
    )
    known[known < 0.5] = 0
    got = bilateral_filter(values, picture, 5.0, 20.0, known=known)
    lattice = oracle.Lattice(
        oracle.bilateral_features(picture[0].permute(1, 2, 0).cpu().numpy(), 5.0, 20.0, np.float64)
    )
    weights = columns(known)
    want = lattice.apply(weights * columns(values[0])) / (lattice.apply(weights) + 1e-20)
    assert samples.scaled_error(columns(got[0]), want) <= 1e-12
    other = torch.where(known > 0, values, values + 100)
    torch.testing.assert_close(bilateral_filter(other, picture, 5.0, 20.0, known=known), got)


def test_what_no_known_value_reaches_is_zero() -> None:
    picture = torch.zeros(1, 1, 1, 40)
    picture[..., 20:] = 255
    known = torch.arange(40)[None, None] < 3
    got = bilateral_filter(torch.ones(1, 1, 1, 40), picture, 3.0, 10.0, known=known)
    assert got[..., 0] == pytest.approx(1)
    assert (got[..., 20:] == 0).all()


def test_bilateral_upsampling_equals_the_oracle() -> None:
    picture, values = guide(), maps(size=(5, 4))
    got = bilateral_filter(values, picture, 6.0, 20.0)
    rows = (np.arange(5) + 0.5) * HEIGHT / 5 - 0.5
    cols = (np.arange(4) + 0.5) * WIDTH / 4 - 0.5
    means = torch.nn.functional.adaptive_avg_pool2d(picture, (5, 4))
    places = np.stack([np.tile(cols, 5), np.repeat(rows, 4)], axis=1)
    cells = np.concatenate([places / 6.0, columns(means[0]) / 20.0], axis=1)
    pixels = oracle.bilateral_features(picture[0].permute(1, 2, 0).cpu().numpy(), 6.0, 20.0, np.float64)
    lattice = oracle.Lattice(np.concatenate([pixels, cells]))
    splatted = np.concatenate(
        [np.zeros((len(pixels), 3)), np.concatenate([columns(values[0]), np.ones((20, 1))], axis=1)]
    )
    sums = lattice.apply(splatted)[: len(pixels)]
    assert samples.scaled_error(columns(got[0]), sums[:, :2] / (sums[:, 2:] + 1e-20)) <= 1e-12


def test_bilateral_upsampling_keeps_edges() -> None:
    """The map of an oblique edge, reduced eightfold, comes back sharper than by bilinear interpolation."""
    rows, cols = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    truth = (rows + 0.4 * cols > 45).float()[None, None]
    picture = (
        80
        + 90 * truth
        + 3 * here(torch.randn(1, 3, 64, 80, generator=torch.Generator("cpu").manual_seed(6), device="cpu"))
    )
    small = torch.nn.functional.adaptive_avg_pool2d(truth, (8, 10))
    ours = bilateral_filter(small, picture, 8.0, 20.0)
    bilinear = torch.nn.functional.interpolate(small, size=(64, 80), mode="bilinear")
    error, bilinear_error = ((found - truth).abs().mean().item() for found in (ours, bilinear))
    assert error < 0.5 * bilinear_error


def test_constants_stay() -> None:
    for size in ((HEIGHT, WIDTH), (3, 4), (30, 40)):
        got = bilateral_filter(torch.full((1, 1, *size), 7.0), guide(dtype=torch.float32), 6.0, 20.0)
        assert got.shape == (1, 1, HEIGHT, WIDTH)
        torch.testing.assert_close(got, torch.full_like(got, 7.0), rtol=1e-5, atol=0)


def test_any_dtype_of_guide_and_values() -> None:
    values, picture = maps(dtype=torch.float32), guide(dtype=torch.float32)
    want = bilateral_filter(values, picture, 6.0, 20.0)
    assert torch.equal(bilateral_filter(values, picture.to(torch.uint8), 6.0, 20.0), want)
    half = bilateral_filter(values.half(), picture.to(torch.uint8), 6.0, 20.0)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), want, atol=4e-3, rtol=0)


@pytest.mark.parametrize("size", [(4, 5), (2, 3)])
def test_bilateral_gradients(device: Device, size: tuple[int, int]) -> None:
    generator = torch.Generator("cpu").manual_seed(7)
    values = maps(size=size).requires_grad_()
    picture = (
        60 * here(torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64, device="cpu"))
    ).requires_grad_()
    known = (0.2 + here(torch.rand(1, *size, generator=generator, dtype=torch.float64, device="cpu"))).requires_grad_()

    def run(columns: Any, colours: Any, weights: Any) -> Any:
        return bilateral_filter(columns, colours, 3.0, 25.0, known=weights)

    assert torch.autograd.gradcheck(run, (values, picture, known), fast_mode=not device.is_reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2, 14, 17)}, r"values must have shape \(B, C, H, W\).*got \(2, 14, 17\)"),
        ({"guide": torch.zeros(1, 3, 0, 17)}, r"guide must have shape \(B, C, H, W\), none of them 0"),
        ({"guide": torch.zeros(2, 3, 14, 17)}, "guide must hold the 1 images of values; got 2"),
        ({"known": torch.ones(1, 1, 14, 17)}, r"known must have shape \(1, 14, 17\); got \(1, 1, 14, 17\)"),
        ({"sxy": 0.0}, "sxy must be positive"),
        ({"srgb": (1.0, 2.0)}, "srgb must be one number or 3 of them; got 2"),
    ],
)
def test_bilateral_filter_of_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments = {"values": maps(), "guide": guide(), "sxy": 5.0, "srgb": 20.0}
    with pytest.raises(ValueError, match=message):
        bilateral_filter(**{**arguments, **change})


@pytest.mark.cpu_only  # elsewhere weights are not read
def test_what_the_filters_do_not_compute_with() -> None:
    """Integers would be rounded towards zero on the way out, complex numbers lose their imaginary part."""
    values, picture = maps(), guide()
    points, features = values.flatten(2)[0].T, picture.flatten(2)[0].T / 20
    for name, call in (
        ("values must be floating point", lambda: bilateral_filter(values.int(), picture, 5.0, 20.0)),
        ("guide must hold real numbers", lambda: bilateral_filter(values, picture + 1j, 5.0, 20.0)),
        ("values must be floating point", lambda: permutohedral_filter(points.int(), features)),
        ("features must hold real numbers", lambda: permutohedral_filter(points, features + 1j)),
    ):
        with pytest.raises(TypeError, match=f"{name}; got torch."):
            call()
    for weight in (-0.5, float("nan"), float("inf")):
        known = here(torch.ones(1, *values.shape[2:])).index_fill(1, here(torch.tensor([1])), weight)
        with pytest.raises(ValueError, match="known must hold finite weights >= 0; got values in"):
            bilateral_filter(values, picture, 5.0, 20.0, known=known)
