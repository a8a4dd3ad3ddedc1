"""The range of an image's values: told by dtype and values, given, or refused; one rule for the NumPy API and the drop-in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import samples
from numpy.typing import NDArray

from deeplab_crf import Bilateral, Gaussian, ImageCRF, dense_crf
from deeplab_crf.core.image_range import check_image_range, unclear_range
from deeplab_crf.pydensecrf import densecrf

HEIGHT, WIDTH, LABELS = 12, 17, 3
IMAGE = samples.photo(HEIGHT, WIDTH)
UNARY = samples.energies(LABELS, HEIGHT * WIDTH).reshape(LABELS, HEIGHT, WIDTH)
FLOATS = IMAGE.astype(np.float32)


def drop_in(image: NDArray[Any], srgb: Any = 13) -> NDArray[np.float32]:
    crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.setUnaryEnergy(UNARY)
    crf.addPairwiseBilateral(sxy=80, srgb=srgb, rgbim=image, compat=10)
    return crf.inference(5).reshape(UNARY.shape)


UNCLEAR = {
    "0..1": (FLOATS / 255, r"float32 with values in 0\.\d+\.\.0\.\d+", r"image_range=\(0, 1\)", r"\(rgbim \* 255\)"),
    "half precision": ((FLOATS / 255).astype(np.float16), "float16", r"image_range=\(0, 1\)", r"\(rgbim \* 255\)"),
    "mean and deviation": ((FLOATS / 255 - 0.5) / 0.2, "float32 with values in -", "undo that", r"\(255 / \("),
    "12 bits": (
        IMAGE.astype(np.uint16) * 16,
        "uint16",
        r"\(0, 4095\), image_range=\(0, 65535\) for 16",
        r"\(rgbim \* \(255 / 4095\)\)",
    ),
    "16 bits": (
        IMAGE.astype(np.uint16) * 257,
        "uint16",
        r"Give image_range=\(0, 65535\) to",
        r"\(rgbim \* \(255 / 65535\)\)",
    ),
    "Hounsfield": (IMAGE.astype(np.int16) * 10 - 1000, "int16 with values in -", r"image_range=\(-\d+, ", r"rgbim - -"),
    "0 and 1": (
        (IMAGE > 120).astype(int),
        r"int64 with values in 0\.\.1",
        r"image_range=\(0, 1\)",
        r"\(rgbim \* 255\)",
    ),
    "one pixel at 256": (IMAGE.astype(int) + 256 - IMAGE.max(), r"\.\.256", r"\(0, 255\) to take", "uint8"),
    "reflectance": (FLOATS * 40, "float32", r"\(0, 255\) to take the values as they are", "uint8"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_unclear_range_is_refused(name: str) -> None:
    image, got, remedy, conversion = UNCLEAR[name]
    for call in (
        lambda: dense_crf(image, unary=UNARY),
        lambda: dense_crf(image, unary=UNARY, preset="deeplab-v2-resnet101"),
        lambda: dense_crf(image[None], unary=UNARY[None]),
        lambda: ImageCRF(image, LABELS),
    ):
        with pytest.raises(ValueError, match=rf"image must be in 0\.\.255.*got .*{got}") as caught:
            call()
        assert caught.match(remedy)
    with pytest.raises(ValueError, match=rf"rgbim must be in 0\.\.255.*got .*{got}.*Convert it to uint8.*{conversion}"):
        drop_in(image)


DARK = IMAGE // 50

CLEAR = {
    "uint16 below 256": IMAGE.astype(np.uint16),
    "int16": IMAGE.astype(np.int16),
    "int64": IMAGE.astype(np.int64),
    "big endian": IMAGE.astype(">i4"),
    "float16": IMAGE.astype(np.float16),
    "float64": IMAGE.astype(np.float64),
}


@pytest.mark.parametrize("name", CLEAR)
def test_values_in_0_255_are_taken_as_they_are(name: str) -> None:
    np.testing.assert_array_equal(dense_crf(CLEAR[name], unary=UNARY), dense_crf(IMAGE, unary=UNARY))
    np.testing.assert_array_equal(drop_in(CLEAR[name]), drop_in(IMAGE))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_dark_image_of_bytes_may_come_as_floats(dtype: Any) -> None:
    """A loop over frames must not end at a dark one. Floats that are whole numbers are bytes, as integers are."""
    assert 1 < DARK.max() < 4
    np.testing.assert_array_equal(dense_crf(DARK.astype(dtype), unary=UNARY), dense_crf(DARK, unary=UNARY))
    np.testing.assert_array_equal(drop_in(DARK.astype(dtype)), drop_in(DARK))
    for unclear in (DARK.astype(dtype) * dtype(0.5), DARK.astype(dtype) - 1, (DARK % 2).astype(dtype)):
        with pytest.raises(ValueError, match=r"image must be in 0\.\.255"):
            dense_crf(unclear, unary=UNARY)


@pytest.mark.parametrize(
    "image",
    [
        (FLOATS - 128) * 1.3 + 128,  # interpolation overshoots
        np.full_like(FLOATS, 0.4),  # one colour: no range matters
        np.full(IMAGE.shape, 3000),
        (IMAGE > 120).astype(np.uint8),
        np.zeros_like(FLOATS),
    ],
)
def test_images_whose_range_does_not_matter_or_is_clear(image: NDArray[Any]) -> None:
    np.testing.assert_array_equal(dense_crf(image, unary=UNARY), dense_crf(image, unary=UNARY, image_range=(0, 255)))
    drop_in(image)


@pytest.mark.parametrize(
    ("image", "image_range"),
    [
        (FLOATS / 255, (0, 1)),
        (IMAGE.astype(np.uint16) * 257, (0, 65535)),
        (IMAGE.astype(np.int16) - 300, (-300, -45)),
        (FLOATS.astype(np.float64) * 2 + 100, (100, 610)),
    ],
)
def test_a_given_range_is_mapped_to_0_255(image: NDArray[Any], image_range: tuple[float, float]) -> None:
    want = dense_crf(IMAGE, unary=UNARY)
    assert samples.scaled_error(dense_crf(image, unary=UNARY, image_range=image_range), want) <= 1e-4
    crf = ImageCRF(image, LABELS, image_range=image_range)
    assert samples.scaled_error(crf.infer(unary=UNARY), want) <= 1e-4
    batch = dense_crf(np.stack([image, image]), unary=np.stack([UNARY, UNARY]), image_range=image_range)
    assert samples.scaled_error(batch[1], want) <= 1e-4


def test_0_255_takes_any_values_as_they_are() -> None:
    image = FLOATS * 40
    want = dense_crf(IMAGE * 40.0, unary=UNARY, kernels=(Bilateral(80, 13),), image_range=(0, 255))
    got = dense_crf(image, unary=UNARY, kernels=(Bilateral(80, 13),), image_range=(0, 255))
    np.testing.assert_array_equal(got, want)
    assert samples.scaled_error(got, dense_crf(IMAGE, unary=UNARY, kernels=(Bilateral(80, 13 / 40),))) <= 1e-4


def test_bool_is_black_and_white() -> None:
    image = IMAGE > 120
    want = dense_crf(image.astype(np.uint8) * np.uint8(255), unary=UNARY)
    np.testing.assert_array_equal(dense_crf(image, unary=UNARY), want)
    np.testing.assert_array_equal(drop_in(image), drop_in(image.astype(np.uint8) * np.uint8(255)))


@pytest.mark.parametrize("srgb", [13 / 255, (13, 13, 0.05), 3000])
def test_widths_in_the_units_of_the_image(srgb: Any) -> None:
    """A width that makes no sense in 0..255 says that the widths are in the image's own units."""
    image = FLOATS / 255
    kernels = (Gaussian(), Bilateral(80, srgb))
    got = dense_crf(image, unary=UNARY, kernels=kernels)
    np.testing.assert_array_equal(got, dense_crf(image, unary=UNARY, kernels=kernels, image_range=(0, 255)))
    drop_in(image, srgb)


def test_an_image_that_no_kernel_looks_at_may_have_any_range() -> None:
    kernels = (Gaussian(),)
    want = dense_crf(None, unary=UNARY, kernels=kernels)
    np.testing.assert_array_equal(dense_crf(FLOATS / 255, unary=UNARY, kernels=kernels), want)


def test_a_dark_image_of_a_batch_has_the_range_of_the_others() -> None:
    batch, scores = np.stack([FLOATS, FLOATS / 255]), np.stack([UNARY, UNARY])
    got = dense_crf(batch, unary=scores)
    np.testing.assert_array_equal(got[1], dense_crf(batch[1], unary=UNARY, image_range=(0, 255)))


@pytest.mark.parametrize("image_range", [(0, 0), (1, 0), (0, np.nan), (0, np.inf), (0,), (0, 1, 2), "ab", 7, (None, 1)])
def test_what_is_no_range(image_range: Any) -> None:
    with pytest.raises(ValueError, match=r"image_range must be \(low, high\)"):
        dense_crf(IMAGE, unary=UNARY, image_range=image_range)
    with pytest.raises(ValueError, match=r"image_range must be \(low, high\)"):
        ImageCRF(IMAGE, LABELS, image_range=image_range)


def test_the_rule_reads_values_only_where_it_must() -> None:
    def unread() -> tuple[float, float]:
        raise AssertionError("values were read")

    assert unclear_range(np.dtype(np.uint8), unread) is None
    assert unclear_range("torch.uint8", unread) is None
    assert unclear_range(np.dtype(np.float32), None) is None
    assert unclear_range(np.dtype(np.float32), unread, (0.5,)) is None
    assert check_image_range((np.float32(0), 10)) == (0.0, 10.0)


def test_an_image_beyond_the_floats_is_an_error_not_a_warning() -> None:
    for image_range in ((0, 1), (0, 1e-300)):
        with pytest.raises(ValueError, match=r"features must be finite.*Check the image"):
            dense_crf(FLOATS.astype(np.float64) * 1e300, unary=UNARY, image_range=image_range)
