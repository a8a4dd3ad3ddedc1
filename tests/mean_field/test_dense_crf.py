"""dense_crf: one call from an image and scores to probabilities, against the oracle and against itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import samples
from numpy.typing import NDArray

from deeplab_crf import Bilateral, Gaussian, ImageCRF, PairwiseKernel, dense_crf
from deeplab_crf.core.presets import PRESETS, get_preset

HEIGHT, WIDTH, LABELS = 23, 31, 5
POINTS = HEIGHT * WIDTH
IMAGE = samples.photo(HEIGHT, WIDTH)
UNARY = samples.energies(LABELS, POINTS).reshape(LABELS, HEIGHT, WIDTH)


def judged(
    image: NDArray[Any],
    unary: NDArray[Any],
    kernels: tuple[Gaussian | Bilateral, ...] = (Gaussian(), Bilateral()),
    iterations: int = 5,
    normalization: str = "symmetric",
    dtype: type = np.float32,
) -> NDArray[Any]:
    """The oracle's answer, (C, H, W)."""
    judge = oracle.MeanField(unary.reshape(len(unary), -1))
    for kernel in kernels:
        if isinstance(kernel, Gaussian):
            features = oracle.gaussian_features(*image.shape[:2], kernel.sxy, dtype)
        else:
            features = oracle.bilateral_features(image, kernel.sxy, kernel.srgb, dtype)
        compat = kernel.weight if kernel.compat is None else kernel.weight * np.asarray(kernel.compat)
        judge.kernels.append((oracle.Lattice(features, dtype), compat, kernel.normalization or normalization))
    return judge.run(iterations).reshape(unary.shape)


def assert_close(got: NDArray[Any], want: NDArray[Any], tolerance: float = 1e-5) -> None:
    assert samples.scaled_error(got, want) <= tolerance


def test_defaults_are_those_of_pydensecrf() -> None:
    got = dense_crf(IMAGE, unary=UNARY)
    assert got.shape == (LABELS, HEIGHT, WIDTH)
    assert got.dtype == np.float32
    assert_close(got, judged(IMAGE, UNARY))


@pytest.mark.parametrize("normalization", ["before", "after", "symmetric"])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_normalisations_and_iterations(normalization: str, iterations: int) -> None:
    got = dense_crf(IMAGE, unary=UNARY, iterations=iterations, normalization=normalization)
    assert_close(got, judged(IMAGE, UNARY, iterations=iterations, normalization=normalization))


def test_double_precision() -> None:
    got = dense_crf(IMAGE, unary=UNARY.astype(np.float64), dtype=np.float64)
    assert got.dtype == np.float64
    assert_close(got, judged(IMAGE, UNARY.astype(np.float64), dtype=np.float64), 1e-12)


def test_settings_of_kernels() -> None:
    """Widths per axis, columns first, and per channel; compatibilities; a kernel's own normalisation."""
    compat = np.random.default_rng(0).normal(size=(LABELS, LABELS))
    kernels = (
        Gaussian(sxy=(2.0, 5.0), weight=2.0, compat=np.linspace(-2, 0, LABELS), normalization="before"),
        Bilateral(sxy=(40.0, 60.0), srgb=(5.0, 10.0, 20.0), weight=0.5, compat=compat, normalization="after"),
        Bilateral(sxy=30.0, srgb=8.0, weight=-0.5),
    )
    assert_close(dense_crf(IMAGE, unary=UNARY, kernels=kernels), judged(IMAGE, UNARY, kernels))


def test_no_kernels_give_the_softmax() -> None:
    assert_close(dense_crf(IMAGE, unary=UNARY, kernels=()), oracle.softmax(-UNARY.astype(np.float64)))


@pytest.mark.parametrize("channels", [0, 1, 2, 4, 8, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float32, np.float64])
def test_images_of_every_kind(channels: int, dtype: type) -> None:
    """Gray (H, W), one band, multispectral; integer or float: widths are in the image's own units."""
    image = samples.photo(HEIGHT, WIDTH, channels or 1)[..., : channels or None]
    image = image[..., 0] if channels == 0 else image
    assert_close(dense_crf(image.astype(dtype), unary=UNARY), judged(image, UNARY))


def test_units_of_a_float_image() -> None:
    kernels = (Bilateral(sxy=40, srgb=13 / 255),)
    scaled = dense_crf(IMAGE.astype(np.float64) / 255, unary=UNARY, kernels=kernels)
    assert_close(scaled, judged(IMAGE.astype(np.float64) / 255, UNARY, kernels))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (17, 16)])
def test_thin_images(shape: tuple[int, int]) -> None:
    image, unary = samples.photo(*shape), samples.energies(3, shape[0] * shape[1]).reshape(3, *shape)
    assert_close(dense_crf(image, unary=unary), judged(image, unary))


def _layouts(array: NDArray[Any]) -> list[NDArray[Any]]:
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    inner = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    inner[...] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    channels_last = np.ascontiguousarray(np.moveaxis(array, 0, -1))
    return [np.asfortranarray(array), inner, read_only, np.moveaxis(channels_last, -1, 0)]


def test_layouts_of_image_and_scores() -> None:
    want = dense_crf(IMAGE, unary=UNARY)
    for image in _layouts(IMAGE):
        np.testing.assert_array_equal(dense_crf(image, unary=UNARY), want)
    for unary in _layouts(UNARY):
        np.testing.assert_array_equal(dense_crf(IMAGE, unary=unary), want)
    np.testing.assert_array_equal(dense_crf(IMAGE, unary=UNARY.astype(np.float64)), want)


def test_the_doors_agree() -> None:
    """Logits, probabilities and energies of the same distribution give the same answer."""
    logits = -UNARY.astype(np.float64)
    probabilities = oracle.softmax(logits)
    want = dense_crf(IMAGE, unary=UNARY)
    assert_close(dense_crf(IMAGE, logits=logits), want)
    assert_close(dense_crf(IMAGE, logits=logits + 100.0), want, 1e-4)  # a constant per pixel changes nothing
    assert probabilities.min() > 1e-4
    assert_close(dense_crf(IMAGE, probabilities=probabilities), want)


def test_probabilities_of_zero_and_one_are_clipped() -> None:
    hard = np.eye(LABELS)[UNARY.argmin(axis=0)].transpose(2, 0, 1)
    got = dense_crf(IMAGE, probabilities=hard)
    assert np.isfinite(got).all()
    assert_close(got.sum(axis=0), np.ones((HEIGHT, WIDTH)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("confidence", [0.5, 0.7, 0.99])
def test_labels(confidence: float, dtype: type) -> None:
    """A label is right with the given confidence, the rest is shared; ignored pixels are uniform."""
    labels = UNARY.argmin(axis=0).astype(dtype)
    labels[:4, 5:9] = 255
    unary = np.full(UNARY.shape, -np.log((1.0 - confidence) / (LABELS - 1)), np.float32)
    rows, columns = np.nonzero(labels != 255)
    unary[labels[rows, columns], rows, columns] = -np.log(confidence)
    unary[:, labels == 255] = -np.log(1.0 / LABELS)
    want = dense_crf(IMAGE, unary=unary)
    got = dense_crf(IMAGE, labels=labels, confidence=confidence, num_labels=LABELS)
    assert_close(got, want)
    assert_close(dense_crf(IMAGE, labels=labels, confidence=confidence), want)  # counted from the labels


def test_another_ignore_label_and_more_classes_than_seen() -> None:
    labels = UNARY.argmin(axis=0)
    marked = np.where(labels == 2, -1, labels)
    got = dense_crf(IMAGE, labels=marked, ignore_label=-1, num_labels=9)
    assert got.shape == (9, HEIGHT, WIDTH)
    np.testing.assert_array_equal(got, dense_crf(IMAGE, labels=np.where(labels == 2, 255, labels), num_labels=9))


@pytest.mark.parametrize("door", ["unary", "logits", "probabilities", "labels"])
@pytest.mark.parametrize("gray", [False, True])
def test_a_batch_equals_its_images_alone_bit_for_bit(door: str, gray: bool) -> None:
    images = np.stack([samples.photo(HEIGHT, WIDTH, seed=k) for k in range(3)])
    images = images[..., 0] if gray else images
    unaries = np.stack([samples.energies(LABELS, POINTS, seed=k).reshape(UNARY.shape) for k in range(3)])
    scores: dict[str, NDArray[Any]] = {
        "unary": unaries,
        "logits": -unaries,
        "probabilities": np.stack([oracle.softmax(-unary.astype(np.float64)) for unary in unaries]),
        "labels": unaries.argmin(axis=1),
    }
    batch = dense_crf(images, num_labels=LABELS if door == "labels" else None, **{door: scores[door]})
    assert batch.shape == (3, LABELS, HEIGHT, WIDTH)
    for image, score, result in zip(images, scores[door], batch, strict=True):
        alone = dense_crf(image, num_labels=LABELS if door == "labels" else None, **{door: score})
        np.testing.assert_array_equal(result, alone)


@pytest.mark.parametrize("layout", ["(N, d)", "(d, N)", "(d, H, W)", "(H, W, d)"])
def test_features_of_your_own(layout: str) -> None:
    rows = oracle.bilateral_features(IMAGE, 40.0, 10.0)
    grid = rows.reshape(HEIGHT, WIDTH, 5)
    features = {"(N, d)": rows, "(d, N)": rows.T, "(d, H, W)": grid.transpose(2, 0, 1), "(H, W, d)": grid}[layout]
    got = dense_crf(IMAGE, unary=UNARY, kernels=(PairwiseKernel(features, 4.0, "after"),))
    kernels = (Bilateral(sxy=40, srgb=10, weight=4, normalization="after"),)
    assert_close(got, judged(IMAGE, UNARY, kernels))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name: str) -> None:
    preset = get_preset(name)
    want = dense_crf(
        IMAGE,
        unary=UNARY,
        kernels=preset.kernels,
        iterations=preset.iterations,
        normalization=preset.normalization,
    )
    np.testing.assert_array_equal(dense_crf(IMAGE, unary=UNARY, preset=name), want)
    assert_close(want, judged(IMAGE, UNARY, preset.kernels, preset.iterations, preset.normalization))  # type: ignore[arg-type]


def test_damping_and_tolerance_reach_the_engine() -> None:
    damped = dense_crf(IMAGE, unary=UNARY, iterations=3, damping=0.5)
    assert samples.scaled_error(damped, dense_crf(IMAGE, unary=UNARY, iterations=3)) > 1e-3
    stopped = dense_crf(IMAGE, unary=UNARY, iterations=1000, tolerance=1e-4)
    assert samples.scaled_error(stopped, dense_crf(IMAGE, unary=UNARY, iterations=1000)) < 1e-2


def test_same_bits_for_any_number_of_threads() -> None:
    image, unary = samples.photo(150, 171), samples.energies(21, 150 * 171).reshape(21, 150, 171)
    want = dense_crf(image, unary=unary, threads=1)
    for threads in (2, 3, 7, None):
        np.testing.assert_array_equal(dense_crf(image, unary=unary, threads=threads), want)


def test_tensors_that_numpy_does_not_take_are_named() -> None:
    """A network's output requires gradients; torch's own error names no argument."""
    torch = pytest.importorskip("torch", reason="the tensors are torch's")
    logits = torch.zeros(3, 4, 5, requires_grad=True)
    for call in (
        lambda: dense_crf(np.zeros((4, 5, 3), np.uint8), logits=logits),
        lambda: ImageCRF(np.zeros((4, 5, 3), np.uint8), 3).infer(logits=logits),
    ):
        with pytest.raises(TypeError, match=r"logits must be an array of numbers; got Tensor .*detach\(\)"):
            call()
    with pytest.raises(TypeError, match="image must be an array of numbers; got Tensor"):
        dense_crf(logits[0], logits=logits.detach())


def test_a_mask_of_0_and_255_with_two_labels_is_warned_of() -> None:
    """255 is the ignored label, and the result says nothing: label 0 everywhere."""
    image, mask = np.zeros((6, 8, 3), np.uint8), np.where(np.arange(8) < 4, 255, 0) * np.ones((6, 1), int)
    with pytest.warns(UserWarning, match=r"0 alone beside ignore_label = 255.*label 0 everywhere.*labels == 255"):
        assert not dense_crf(image, labels=mask, num_labels=2).argmax(axis=0).any()
    assert dense_crf(image, labels=mask == 255).argmax(axis=0).any()
    dense_crf(image, labels=0 * mask, num_labels=2)  # a region without the other label: no warning
