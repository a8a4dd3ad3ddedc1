"""dense_crf on a device against dense_crf on NumPy's: arrays and tensors in, every kind of scores, image and kernel, and errors.

Where there is no CUDA device, the code that is written for it runs on the CPU's tensors instead: with the CPU's kernels ("cpu") and
with those of CUDA, emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import oracle
import pytest
import samples
import torch
from dense_crf_errors import DENSE_CRF, Case, with_good_arguments
from devices import Device

from deeplab_crf import Bilateral, Gaussian, PairwiseKernel, dense_crf
from deeplab_crf.core.pairwise import NORMALIZATIONS
from deeplab_crf.crf import functional as inference

HEIGHT, WIDTH, LABELS = 17, 18, 5
POINTS = HEIGHT * WIDTH
IMAGE = samples.photo(HEIGHT, WIDTH)
UNARY = samples.energies(LABELS, POINTS).reshape(LABELS, HEIGHT, WIDTH)
HARD = UNARY.argmin(axis=0)
BATCH = np.stack([samples.energies(LABELS, POINTS, seed=k).reshape(UNARY.shape) for k in range(3)])
IMAGES = np.stack([samples.photo(HEIGHT, WIDTH, seed=k) for k in range(3)])
MATRIX = np.random.default_rng(0).normal(size=(LABELS, LABELS))

Door = Callable[..., Any]


@contextmanager
def _standing_in(device: Device, *, tensors: bool) -> Iterator[None]:
    """Makes ``device`` what "cuda" means, and the home of all tensors, in the block. CUDA itself is both already."""
    with pytest.MonkeyPatch.context() as patch:
        if device.name != "cuda":
            patch.setattr(inference, "find_device", lambda name: device.where)
            if tensors:
                patch.setattr(inference, "_home_of_tensors", lambda arguments: device.where)
        yield


@pytest.fixture
def arrays_door(device: Device) -> Door:
    """dense_crf for arrays that are copied to the device."""

    def refine(image: Any, **arguments: Any) -> Any:
        with _standing_in(device, tensors=False):
            result = dense_crf(image, device="cuda", **arguments)
        assert isinstance(result, np.ndarray)
        return result

    return refine


@pytest.fixture
def tensors_door(device: Device) -> Door:
    """dense_crf for tensors on the device: makes tensors of arrays on their way in, and an array of its result."""

    def refine(image: Any, **arguments: Any) -> Any:
        names = {"logits", "probabilities", "unary", "labels"}
        given = {name: _tensor(value, device) if name in names else value for name, value in arguments.items()}
        with _standing_in(device, tensors=True):
            result = dense_crf(_tensor(image, device), **given)
        assert isinstance(result, torch.Tensor)
        assert result.device == device.where
        return result.cpu().numpy()

    return refine


def _tensor(value: Any, device: Device) -> Any:
    return torch.from_numpy(value.copy()).to(device.where) if isinstance(value, np.ndarray) else value


def _compare(door: Door, image: Any = IMAGE, /, *, within: float = 1e-5, **arguments: Any) -> Any:
    """What both doors say, after comparing it."""
    if not {"logits", "probabilities", "unary", "labels"} & set(arguments):
        arguments["unary"] = UNARY
    want, got = dense_crf(image, **arguments), door(image, **arguments)
    assert got.dtype == want.dtype
    assert samples.scaled_error(got, want) <= within
    return got


SCORES: dict[str, dict[str, Any]] = {
    "unary": {"unary": UNARY},
    "logits": {"logits": -UNARY},
    "probabilities": {"probabilities": oracle.softmax(-UNARY.astype(np.float64))},
    "probabilities of 0 and 1": {"probabilities": np.eye(LABELS)[HARD].transpose(2, 0, 1)},
    "labels": {"labels": HARD, "confidence": 0.6},
    "bytes as labels": {"labels": HARD.astype(np.uint8), "num_labels": 9},
    "labels, some ignored": {"labels": np.where(HARD == 2, 255, HARD)},
    "labels, none ignored": {"labels": HARD, "ignore_label": None},
    "labels, another ignored": {"labels": np.where(HARD == 2, -1, HARD), "ignore_label": -1},
    "whole numbers": {"logits": (8 * UNARY).astype(np.int16)},
    "half precision": {"logits": UNARY.astype(np.float16)},
    "double precision": {"logits": UNARY.astype(np.float64), "dtype": np.float64, "within": 1e-12},
}


@pytest.mark.parametrize("name", SCORES)
def test_scores(name: str, arrays_door: Door, tensors_door: Door) -> None:
    arguments = dict(SCORES[name])
    within = arguments.pop("within", 1e-5)
    got = _compare(tensors_door, within=within, **arguments)
    np.testing.assert_array_equal(got, arrays_door(IMAGE, **arguments))


@pytest.mark.parametrize("name", [name for name in SCORES if "labels" in SCORES[name]])
def test_many_labels_take_no_table(name: str, tensors_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of all pairs of labels would have 16 GiB for 65536 of them; the energies without it have the same bits."""
    want = dense_crf(IMAGE, **SCORES[name])
    got = tensors_door(IMAGE, **SCORES[name])
    for module in ("core.scores", "crf.image_inference"):
        monkeypatch.setattr(f"deeplab_crf.{module}.LARGEST_TABLE", 1)
        monkeypatch.setattr(f"deeplab_crf.{module}.label_table", None)
    np.testing.assert_array_equal(dense_crf(IMAGE, **SCORES[name]), want)
    np.testing.assert_array_equal(tensors_door(IMAGE, **SCORES[name]), got)


def test_labels_of_16_bits(tensors_door: Door) -> None:
    """A void of 65535 that is named costs nothing; as many labels as 16 bits hold cost what their energies do."""
    void = np.where(HARD == 2, 65535, HARD).astype(np.uint16)
    got = tensors_door(IMAGE, labels=void, ignore_label=65535)
    np.testing.assert_array_equal(got, tensors_door(IMAGE, labels=np.where(HARD == 2, 255, HARD)))
    few = tensors_door(np.zeros((2, 2, 3), np.uint8), labels=HARD[:2, :2], num_labels=65536, iterations=0)
    assert tuple(few.shape) == (65536, 2, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float64, bool])
@pytest.mark.parametrize("channels", [0, 1, 3, 8])
def test_images(channels: int, dtype: type, tensors_door: Door) -> None:
    image = samples.photo(HEIGHT, WIDTH, channels or 1)
    image = image > 100 if dtype is bool else image.astype(dtype)
    # Values of 0 and 1 make one cell of the image, in which each iteration triples a rounding error: 2e-5 after five.
    _compare(tensors_door, image if channels else image[..., 0], iterations=2)


KERNELS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "widths of each axis and channel": (Gaussian((2, 5), 2), Bilateral((40, 60), (5, 10, 20), 0.5)),
    "diagonal and matrix": (
        Gaussian(2, 2, compat=np.linspace(-2, 0, LABELS)),
        Bilateral(40, 10, -0.5, compat=MATRIX),
    ),
    "normalisations of their own": (Gaussian(normalization="before"), Bilateral(normalization="after")),
    "of equal kinds": (Gaussian(3, 1), Gaussian(1, 2)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str, arrays_door: Door) -> None:
    _compare(arrays_door, kernels=KERNELS[name])


@pytest.mark.parametrize("layout", ["(N, d)", "(d, N)", "(d, H, W)", "(H, W, d)"])
def test_features_of_your_own(layout: str, device: Device, tensors_door: Door) -> None:
    rows = oracle.bilateral_features(IMAGE, 40.0, 10.0)
    grid = rows.reshape(HEIGHT, WIDTH, 5)
    features = {"(N, d)": rows, "(d, N)": rows.T, "(d, H, W)": grid.transpose(2, 0, 1), "(H, W, d)": grid}[layout]
    want = dense_crf(IMAGE, unary=UNARY, kernels=(PairwiseKernel(features, MATRIX, "after"),))
    for given in (features, _tensor(features, device)):
        got = tensors_door(IMAGE, unary=UNARY, kernels=(PairwiseKernel(given, MATRIX, "after"),))
        assert samples.scaled_error(got, want) <= 1e-5


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalisations(normalization: str, arrays_door: Door) -> None:
    # Unnormalised sums are many times larger than energies; weights that make something of them.
    small = (Gaussian(2, 0.05), Bilateral(10, 20, 0.02)) if normalization == "none" else None
    _compare(arrays_door, normalization=normalization, kernels=small)


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "deeplab-v2-resnet101"},
        {"preset": "crfasrnn", "iterations": 3},
        {"iterations": 0},
        {"iterations": np.int64(1), "threads": 1},
        {"iterations": 4, "damping": 0.5},
        {"iterations": 100, "tolerance": 0.18},
        {"iterations": 100, "tolerance": 0.18, "damping": 0.25},
    ],
    ids=str,
)
def test_settings(settings: dict[str, Any], arrays_door: Door) -> None:
    _compare(arrays_door, **({**settings, "kernels": None} | {"labels": HARD}))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_thin_images(shape: tuple[int, int], arrays_door: Door) -> None:
    unary = samples.energies(3, shape[0] * shape[1]).reshape(3, *shape)
    want = dense_crf(samples.photo(*shape), unary=unary)
    assert samples.scaled_error(arrays_door(samples.photo(*shape), unary=unary), want) <= 1e-5


@pytest.mark.parametrize("source", ["unary", "logits", "probabilities", "labels"])
@pytest.mark.parametrize("gray", [False, True])
def test_a_batch_equals_its_images_alone_bit_for_bit(source: str, gray: bool, tensors_door: Door) -> None:
    images = IMAGES[..., 0] if gray else IMAGES
    scores = {
        "unary": BATCH,
        "logits": -BATCH,
        "probabilities": np.exp(-BATCH) / np.exp(-BATCH).sum(axis=1, keepdims=True),
        "labels": BATCH.argmin(axis=1),
    }[source]
    # Two iterations: after five, float32 itself is 2.6e-5 off float64 in a pixel of these.
    settings = {"iterations": 2}
    batch = _compare(tensors_door, images, **{source: scores}, **settings)
    assert batch.shape == BATCH.shape
    for image, one, result in zip(images, scores, batch, strict=True):
        np.testing.assert_array_equal(result, tensors_door(image, **{source: one}, **settings))


def test_an_image_is_only_needed_for_colours(arrays_door: Door) -> None:
    kernels = (Gaussian(), PairwiseKernel(samples.features(POINTS, 4), 2.0))
    _compare(arrays_door, None, kernels=kernels)
    _compare(arrays_door, None, kernels=kernels, unary=BATCH)


def test_arrays_of_any_kind_are_copied(arrays_door: Door) -> None:
    """Read-only, strided, reversed, of the other byte order, lists, and tensors on the CPU."""
    want = arrays_door(IMAGE, unary=UNARY)
    read_only = UNARY.copy()
    read_only.flags.writeable = False
    reversed_image = np.ascontiguousarray(IMAGE[::-1, ::-1])[::-1, ::-1]
    for unary in (read_only, UNARY.astype(">f4"), np.asfortranarray(UNARY), UNARY.tolist(), UNARY.astype(float)):
        np.testing.assert_array_equal(arrays_door(reversed_image, unary=unary), want)


def test_tensors_of_any_kind(device: Device) -> None:
    """Strided, in half precision, asking for gradients, under autocast, in inference mode, beside arrays."""
    with _standing_in(device, tensors=True):
        _check_tensors_of_any_kind(device)


def _check_tensors_of_any_kind(device: Device) -> None:
    image, unary = _tensor(IMAGE, device), _tensor(UNARY, device)
    want = dense_crf(image, unary=unary)
    assert want.shape == UNARY.shape
    assert want.stride() == (1, WIDTH * LABELS, LABELS)
    planar = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided = unary.permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    with torch.autocast(device.where.type, torch.bfloat16):
        got = dense_crf(planar, unary=strided)
    assert not got.requires_grad
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(dense_crf(IMAGE, unary=unary), want, rtol=0, atol=0)
    torch.testing.assert_close(dense_crf(image, unary=UNARY), want, rtol=0, atol=0)
    half = dense_crf(image, logits=unary.bfloat16())
    torch.testing.assert_close(half, dense_crf(image, logits=unary.bfloat16().float()), rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(dense_crf(image, unary=unary), want, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", DENSE_CRF)
def test_bad_input(name: str, arrays_door: Door) -> None:
    _refused(DENSE_CRF[name], arrays_door)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in DENSE_CRF if "text" not in name])
def test_bad_input_in_tensors(name: str, tensors_door: Door) -> None:
    _refused(DENSE_CRF[name], tensors_door)


def _refused(case: Case, door: Door) -> None:
    """The same error as on the CPU's door: its class, and the words up to what came."""
    call, match = case
    with pytest.raises((ValueError, TypeError), match=f"(?is){match}") as on_cpu:
        call(with_good_arguments(dense_crf))
    with pytest.raises(type(on_cpu.value), match=f"(?is){match}") as on_device:
        call(with_good_arguments(door))
    if not str(on_cpu.value).startswith("features"):  # the engines' own
        assert str(on_device.value).partition("; got")[0] == str(on_cpu.value).partition("; got")[0]


def test_tensors_on_the_cpu_are_arrays_like_others() -> None:
    want = dense_crf(IMAGE, unary=UNARY)
    got = dense_crf(torch.from_numpy(IMAGE), unary=torch.from_numpy(UNARY))
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, want)


def test_tensors_must_lie_on_one_device_that_computes() -> None:
    elsewhere = torch.from_numpy(UNARY).to("meta")
    with pytest.raises(ValueError, match=r"tensors.*one device.*image on cpu, unary on meta"):
        dense_crf(torch.from_numpy(IMAGE), unary=elsewhere)
    kernels = (Gaussian(), PairwiseKernel(torch.zeros(POINTS, 2)))
    with pytest.raises(ValueError, match=r"features of kernel 1 on cpu"):
        dense_crf(None, unary=elsewhere, kernels=kernels)
    with pytest.raises(ValueError, match=r"unary must be on the CPU or a CUDA device; got meta"):
        dense_crf(IMAGE, unary=elsewhere)


@pytest.mark.parametrize("given", ["cpu", "cuda:1", torch.device("cuda", 3)])
def test_a_device_beside_tensors_must_be_theirs(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_home_of_tensors", lambda arguments: torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"device must be that of the tensors, cuda:0, or None; got '(cpu|cuda:[13])'"):
        dense_crf(IMAGE, unary=UNARY, device=given)
