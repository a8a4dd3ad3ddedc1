"""DenseCRF, the module: what it computes, for images, volumes and points."""

from __future__ import annotations

import copy
import io
import pickle

import crf_samples
import numpy as np
import pytest
import samples
import torch
from crf_samples import here
from devices import Device

from deeplab_crf import Bilateral, DenseCRF, Gaussian, PairwiseKernel, dense_crf, get_preset
from deeplab_crf.core.image_points import tile_order
from deeplab_crf.core.pairwise import NORMALIZATIONS
from deeplab_crf.core.presets import PRESETS
from deeplab_crf.crf.points import tile_walk

pytestmark = pytest.mark.usefixtures("device")

SIZE = (37, 70)
L = 5


def _inputs(batch: int = 1, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    logits = np.stack([-samples.energies(L, SIZE[0] * SIZE[1], seed) for seed in range(batch)])
    return here(torch.from_numpy(logits)).reshape(batch, L, *SIZE).to(dtype), crf_samples.photos(batch, *SIZE)


LOGITS, IMAGE = _inputs(3)


@pytest.mark.parametrize("shape", [(1, 1), (5, 6), (16, 64), (17, 65), (130, 200)])
def test_walk_is_that_of_the_numpy_door(shape: tuple[int, int]) -> None:
    walk = tile_walk(shape, torch.device("cpu"))
    assert walk.dtype == torch.int32
    assert torch.equal(walk, here(torch.from_numpy(tile_order(*shape).copy())))
    volume = tile_walk((3, *shape), torch.device("cpu")).reshape(3, -1)
    assert torch.equal(volume - torch.arange(3)[:, None] * shape[0] * shape[1], walk.expand(3, -1))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_agree_with_the_numpy_door(name: str) -> None:
    """Features bit for bit, so even on sparse lattices no vertex differs."""
    got = DenseCRF.from_preset(name, L)(LOGITS[:1], IMAGE[:1])
    pixels = IMAGE[0].permute(1, 2, 0).byte().cpu().numpy()
    want = dense_crf(pixels, logits=LOGITS[0].cpu().numpy(), preset=name)
    assert samples.scaled_error(got[0].exp(), want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compatibility", ["potts", "diagonal", "matrix"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_setting_agrees_with_the_numpy_door(normalization: str, compatibility: str, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    numbers = generator.random((L, L), np.float32)
    compat = {"potts": None, "diagonal": -numbers[0], "matrix": -numbers}[compatibility]
    weight = 2.0**-10 if normalization == "none" else 3.0
    kernels = (Gaussian(2.5, weight, compat), Bilateral((30, 20), (13, 12, 11), 2 * weight, compat, "before"))
    crf = DenseCRF(L, kernels, 4, normalization=normalization, compatibility=compatibility)
    got = crf(LOGITS[:1].to(dtype), IMAGE[:1])
    want = dense_crf(
        IMAGE[0].permute(1, 2, 0).cpu().numpy(),
        logits=LOGITS[0].cpu().numpy(),
        kernels=kernels,
        iterations=4,
        normalization=normalization,
        dtype="float64" if dtype == torch.float64 else "float32",
    )
    assert got.dtype == dtype
    assert samples.scaled_error(got[0].exp(), want) < samples.TOLERANCE[want.dtype]


def test_result_is_a_log_distribution() -> None:
    got = DenseCRF()(LOGITS, IMAGE)
    assert got.shape == LOGITS.shape
    torch.testing.assert_close(got.exp().sum(1), torch.ones(3, *SIZE))


def test_images_of_a_batch_have_the_bits_of_their_runs_alone() -> None:
    crf = DenseCRF(L)
    together = crf(LOGITS, IMAGE)
    for image in range(3):
        assert torch.equal(crf(LOGITS[image : image + 1], IMAGE[image : image + 1])[0], together[image])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    crf = DenseCRF(L)
    got = crf(LOGITS.to(dtype), IMAGE.to(dtype))
    assert got.dtype == dtype
    assert torch.equal(got, crf(LOGITS.to(dtype).float(), IMAGE.to(dtype).float()).to(dtype))


def test_integer_images_and_any_strides() -> None:
    crf = DenseCRF(L)
    want = crf(LOGITS, IMAGE)
    assert torch.equal(crf(LOGITS, IMAGE.byte()), want)
    assert torch.equal(crf(LOGITS, IMAGE.double()), want)
    channels_last = torch.channels_last
    given = LOGITS.to(memory_format=channels_last)
    assert torch.equal(crf(given, IMAGE.to(memory_format=channels_last)), want)
    assert torch.equal(given, LOGITS), "the logits stay as they were"


def test_kernels_without_colours_need_no_image() -> None:
    crf = DenseCRF(L, (Gaussian(3, 3),))
    assert torch.equal(crf(LOGITS), crf(LOGITS, IMAGE))


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(channels: int) -> None:
    image = torch.cat([IMAGE, IMAGE.flip(0)], 1)[:, :channels]
    got = DenseCRF(L, channels=channels)(LOGITS, image)
    want = dense_crf(image[1].permute(1, 2, 0).cpu().numpy(), logits=LOGITS[1].cpu().numpy())
    assert samples.scaled_error(got[1].exp(), want) < 1e-5


def test_mask_leaves_padding_out() -> None:
    """A padded image gives what the image gives alone, whatever the padding holds."""
    crf = DenseCRF(L, method="lattice")
    want = crf(LOGITS[:2, :, :20, :30], IMAGE[:2, :, :20, :30])
    mask = torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[:, :20, :30] = True
    got = crf(LOGITS[:2], IMAGE[:2], mask)
    assert samples.scaled_error(got[:, :, :20, :30].exp(), want.exp()) < 1e-5
    torch.testing.assert_close(got[:, :, 20:], torch.log_softmax(LOGITS[:2, :, 20:], 1))


def test_an_image_without_any_pixel() -> None:
    mask = torch.ones(2, *SIZE, dtype=torch.bool)
    mask[1] = False
    for normalization in NORMALIZATIONS:
        kernels = (Gaussian(3, 0.1), Bilateral(80, 13, 0.1))
        crf = DenseCRF(L, kernels, normalization=normalization, trainable=("weights", "bandwidths"))
        logits = LOGITS[:2].clone().requires_grad_()
        got = crf(logits, IMAGE[:2], mask)
        torch.testing.assert_close(got[1], torch.log_softmax(LOGITS[1], 0))
        got.exp()[:, 0].sum().backward()
        for leaf in (logits, *crf.parameters()):
            assert torch.isfinite(leaf.grad).all()


def test_volume_agrees_with_the_numpy_lattice() -> None:
    shape = (3, 6, 7)
    logits = here(torch.from_numpy(-samples.energies(L, 3 * 6 * 7))).reshape(1, L, *shape)
    image = crf_samples.photos(3, 6, 7).transpose(0, 1)[None]
    spacing = np.array([1.5, 1.0, 4.0])
    grid = np.mgrid[:3, :6, :7].reshape(3, -1)[::-1] * spacing[:, None]
    colours = image[0].flatten(1).cpu().numpy() / np.float32(13.0)
    features = [grid / [[3.0], [2.0], [5.0]], np.concatenate([grid / 20.0, colours])]
    twins = [
        PairwiseKernel(each.T.astype(np.float32), weight) for each, weight in zip(features, (2.0, 4.0), strict=True)
    ]
    want = dense_crf(None, logits=logits[0].reshape(L, 1, -1).cpu().numpy(), kernels=twins, iterations=3)
    kernels = (Gaussian((3, 2, 5), 2.0), Bilateral(20, 13, 4.0))
    crf = DenseCRF(L, kernels, 3, spatial_dims=3)
    for got in (
        crf(logits, image, spacing=spacing.tolist()),
        crf(logits, image, spacing=here(torch.from_numpy(spacing))[None]),
        DenseCRF(L, kernels, 3, spatial_dims=3, spacing=tuple(spacing))(logits, image),
    ):
        assert got.shape == logits.shape
        assert samples.scaled_error(got[0].reshape(L, 1, -1).exp(), want) < 1e-5


def test_points_of_a_grid_are_the_image() -> None:
    crf = DenseCRF(L)
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    positions = torch.stack([columns, rows]).expand(3, -1, -1, -1)
    points = torch.cat([positions, IMAGE], 1).flatten(2).transpose(1, 2)
    got = crf(LOGITS.flatten(2), points)
    assert got.shape == (3, L, SIZE[0] * SIZE[1])
    assert samples.scaled_error(got.exp(), crf(LOGITS, IMAGE).flatten(2).exp()) < 1e-5


def test_points_may_come_in_any_order() -> None:
    crf = DenseCRF(L, (Gaussian((1, 1, 1, 1), 2.0),), spatial_dims=4)
    points = here(torch.from_numpy(np.stack([samples.features(50, 4, seed) for seed in range(2)])))
    logits = crf_samples.normal(2, L, 50, dtype=torch.float32)
    permuted = crf_samples.permutation(50)
    got = crf(logits[..., permuted], points[:, permuted])
    assert samples.scaled_error(got.exp(), crf(logits, points)[..., permuted].exp()) < 1e-5


def test_tolerance_and_damping_reach_the_engine() -> None:
    want = dense_crf(
        IMAGE[0].permute(1, 2, 0).cpu().numpy(),
        logits=LOGITS[0].cpu().numpy(),
        damping=0.4,
        tolerance=0.01,
        iterations=30,
    )
    got = DenseCRF(L, iterations=30, damping=0.4, tolerance=0.01)(LOGITS[:1], IMAGE[:1])
    assert samples.scaled_error(got[0].exp(), want) < 1e-5


def test_exact_mode_is_near() -> None:
    logits, image = LOGITS[:2, :, :12, :14], IMAGE[:2, :, :12, :14]
    mask = torch.ones(2, 12, 14, dtype=torch.bool)
    mask[1, 8:] = False
    kernels = (Gaussian(3, 3), Bilateral(20, 30, 3))
    lattice = DenseCRF(L, kernels)(logits, image, mask)
    exact = DenseCRF(L, kernels, method="exact")(logits, image, mask)
    assert (lattice.exp() - exact.exp()).abs().max() < 0.1
    assert (lattice.exp() - torch.softmax(logits, 1)).abs().max() > 0.2, "the CRF did something"


@pytest.mark.parametrize(
    "trainable", [(), ("weights",), ("compatibility", "bandwidths"), ("weights", "compatibility", "bandwidths")]
)
def test_state(trainable: tuple[str, ...]) -> None:
    crf = DenseCRF(L, compatibility="matrix", trainable=trainable)
    names = {"weights": ["weights"], "compatibility": ["compatibility"], "bandwidths": ["log_sxy", "log_srgb"]}
    assert {name for name, _ in crf.named_parameters()} == {name for group in trainable for name in names[group]}
    shapes = {name: tuple(tensor.shape) for name, tensor in crf.state_dict().items()}
    assert shapes == {"weights": (2,), "compatibility": (2, L, L), "log_sxy": (2, 2), "log_srgb": (1, 3)}
    with torch.no_grad():
        for tensor in crf.state_dict().values():
            tensor.mul_(1.1)
    want = crf(LOGITS[:1], IMAGE[:1])
    other = DenseCRF(L, compatibility="matrix")
    other.load_state_dict(crf.state_dict())
    stream = io.BytesIO()
    torch.save(crf, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf)), other, torch.load(stream, weights_only=False)):
        assert torch.equal(twin(LOGITS[:1], IMAGE[:1]), want)


def test_widths_come_back_bit_for_bit() -> None:
    widths = [1.0, 2.0, 3.0, 5.0, 13.0, 67.0, 80.0, 121.0, 160.0, 0.3, 1 / 3]
    crf = DenseCRF(kernels=[Gaussian(width) for width in widths])
    assert torch.equal(crf.log_sxy[:, 0].exp().float(), torch.tensor(widths))


def test_from_preset_and_repr() -> None:
    crf = DenseCRF.from_preset("deeplab-v2-resnet101", 21, iterations=3, trainable=("weights",))
    assert crf.iterations == 3
    assert crf.normalizations == ("after", "after")
    assert [parameter.shape for parameter in crf.parameters()] == [(2,)]
    shown = repr(crf)
    for part in (
        "num_classes=21, iterations=3, compatibility='potts', trainable=['weights']",
        "(kernel 0): Gaussian(sxy=(1.0, 1.0), weight=3, normalization='after')",
        "(kernel 1): Bilateral(sxy=(67.0, 67.0), srgb=(3.0, 3.0, 3.0), weight=4, normalization='after')",
    ):
        assert part in shown
    with pytest.raises(ValueError, match="preset must be one of"):
        DenseCRF.from_preset("deeplab")
    assert len(get_preset("deeplab-v2-resnet101").kernels) == 2


def test_double_and_half_modules() -> None:
    want = DenseCRF(L)(LOGITS.double(), IMAGE)
    assert samples.scaled_error(DenseCRF(L).double()(LOGITS.double(), IMAGE), want) < 1e-12
    half = DenseCRF(L).half()(LOGITS.half(), IMAGE)
    assert half.dtype == torch.float16
    assert samples.scaled_error(half.exp(), want.exp()) < 0.1


def test_training_after_inference_mode() -> None:
    """What the first call keeps for later ones must not be marked as of inference only."""
    logits, image = LOGITS[:1, :, :11, :13], IMAGE[:1, :, :11, :13]
    crf = DenseCRF(L, trainable=("weights",))
    with torch.inference_mode():
        want = crf(logits, image).clone()
    got = crf(logits, image)
    got.sum().backward()
    assert torch.equal(got.detach(), want)


def test_training_results_are_contiguous() -> None:
    """nll_loss cannot differentiate the other memory format."""
    logits = LOGITS.clone().requires_grad_()
    got = DenseCRF(L)(logits, IMAGE)
    torch.nn.functional.nll_loss(got, torch.zeros(3, *SIZE, dtype=torch.long)).backward()
    assert got.is_contiguous()
    assert torch.isfinite(logits.grad).all()


def test_under_autocast(device: Device) -> None:
    with torch.autocast(device.where.type, dtype=torch.bfloat16):
        got = DenseCRF(L)(LOGITS.bfloat16(), IMAGE)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, DenseCRF(L)(LOGITS.bfloat16(), IMAGE))
