"""Which pixels ``deeplab-crf refine`` sees: images of other ranges, of several bands, and images that their EXIF turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import read, write_turned
from numpy.typing import NDArray
from PIL import Image
from samples import photo

import deeplab_crf
from deeplab_crf.cli import main
from deeplab_crf.core.presets import get_preset

HEIGHT, WIDTH = 24, 32
IMAGE = photo(HEIGHT, WIDTH)
GRAY = IMAGE[:, :, 0]
LABELS = np.repeat(np.arange(HEIGHT) * 2 // HEIGHT, WIDTH).reshape(HEIGHT, WIDTH)
LABELS[::5, ::7] = 1 - LABELS[::5, ::7]


def refined(image: NDArray[Any], labels: NDArray[Any] = LABELS) -> NDArray[Any]:
    kernels = get_preset("pydensecrf").kernels
    return deeplab_crf.dense_crf(image, labels=labels, num_labels=2, kernels=kernels).argmax(axis=0)


def run(folder: Path, image: str, *options: str, labels: NDArray[Any] | None = None) -> NDArray[Any]:
    """The result of the command for an image file in ``folder``."""
    Image.fromarray((LABELS if labels is None else labels).astype(np.uint8)).save(folder / "labels.png")
    out = folder / "out.png"
    assert (
        main(["refine", str(folder / image), str(folder / "labels.png"), "-o", str(out), "--overwrite", *options]) == 0
    )
    return read(out)


FILES = {
    "twelve.png": (
        GRAY.astype(np.uint16) * 16,
        "uint16.*Give --image-range 0,4095, --image-range 0,65535 for 16 bits, to map",
        "0,4080",
    ),
    "twelve.tif": (GRAY.astype(np.uint16) * 16, "uint16", "0,4080"),
    "sixteen.png": (GRAY.astype(np.uint16) * 257, "uint16", "0,65535"),
    "signed.tif": (GRAY.astype(np.int32) * 10 - 1000, "int32.*--image-range -", "-1000,1550"),
    "float.tif": (GRAY.astype(np.float32) / 255, "float32.*--image-range 0,1 ", "0,1"),
}


@pytest.mark.parametrize("name", FILES)
def test_images_of_more_than_8_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    array, message, image_range = FILES[name]
    Image.fromarray(array).save(tmp_path / name)
    got = run(tmp_path, name, "--image-range", image_range, "--overlay")
    np.testing.assert_array_equal(got, refined(GRAY))
    assert len(np.unique(got)) == 2
    out = tmp_path / "none.png"
    assert main(["refine", str(tmp_path / name), str(tmp_path / "labels.png"), "-o", str(out)]) == 1
    errors = capsys.readouterr().err
    assert f"{name}: the image must be in 0..255" in errors
    assert "to map it to 0..255, or --image-range 0,255 to take the values as they are" in errors
    assert __import__("re").search(message, errors)
    assert not out.exists()


def test_a_16_bit_image_in_0_255_is_taken_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(GRAY.astype(np.uint16)).save(tmp_path / "low.png")
    np.testing.assert_array_equal(run(tmp_path, "low.png"), refined(GRAY))


def test_bands_count_and_show(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    bands = np.dstack([IMAGE, 255 - IMAGE[:, :, :1], photo(HEIGHT, WIDTH, 1, seed=1)]).astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    got = run(tmp_path, "bands.tif", "--image-range", "0,4080", "--overlay")
    np.testing.assert_array_equal(got, refined(bands // 16))
    with Image.open(tmp_path / "out_overlay.png") as image:
        assert image.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("value", ["0", "1,0", "a,b", "0,1,2", "0,inf", ""])
def test_what_is_no_range(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    arguments = ["refine", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "-o", str(tmp_path / "o.png")]
    assert main([*arguments, "--image-range", value]) == 2
    assert "must be two numbers with a comma, LOW below HIGH, such as 0,65535" in capsys.readouterr().err


@pytest.mark.parametrize("confidence", ["0.5", "0.3"])
def test_a_confidence_that_labels_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], confidence: str) -> None:
    """At 1 / L the result is constant, below it labels are inverted."""
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    Image.fromarray(LABELS.astype(np.uint8)).save(tmp_path / "labels.png")
    arguments = ["refine", str(tmp_path / "a.png"), str(tmp_path / "labels.png"), "-o", str(tmp_path / "o.png")]
    assert main([*arguments, "--confidence", confidence]) == 1
    assert f"confidence must be between 1 / 2 (the number of labels) and 1, both excluded; got {confidence}" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--confidence", confidence, "--num-labels", "4"]) == 0


# ---------------------------------------------------------------- EXIF


TURNS = {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
         2: lambda a: a[:, ::-1], 3: lambda a: np.rot90(a, 2), 4: lambda a: a[::-1]}  # fmt: skip


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_the_size_of_the_turned_image_belong_to_it(tmp_path: Path, orientation: int) -> None:
    turn = TURNS[orientation]
    write_turned(tmp_path / "photo.png", IMAGE, orientation)
    got = run(tmp_path, "photo.png", labels=turn(LABELS))
    np.testing.assert_array_equal(got, refined(turn(IMAGE), turn(LABELS)))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_the_size_of_the_stored_image_belong_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int
) -> None:
    write_turned(tmp_path / "photo.png", IMAGE, orientation)
    np.testing.assert_array_equal(run(tmp_path, "photo.png"), refined(IMAGE))
    assert "belong to the image as it is stored, not as its EXIF turns it" in capsys.readouterr().out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("upright", [False, True])
def test_scores_are_matched_by_their_size_too(tmp_path: Path, upright: bool, channels_last: bool) -> None:
    """Coarse scores in proportion to one of the two sizes, and scores with their channels last."""
    write_turned(tmp_path / "photo.png", IMAGE, 6)
    scores = np.stack([1.0 - LABELS, LABELS]).astype(np.float32) * 4
    scores = np.rot90(scores, -1, (1, 2)) if upright else scores
    scores = scores.transpose(1, 2, 0) if channels_last else scores[:, ::2, ::2]
    np.save(tmp_path / "scores.npy", scores)
    out = tmp_path / "out.png"
    arguments = ["refine", str(tmp_path / "photo.png"), str(tmp_path / "scores.npy"), "-o", str(out)]
    assert main([*arguments, "--scores-are", "logits"]) == 0
    with Image.open(out) as image:
        assert image.size == ((HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT))


@pytest.mark.parametrize("orientation", [2, 6])
def test_labels_of_a_stored_tiff_belong_to_it(tmp_path: Path, orientation: int) -> None:
    """tifffile and GDAL read a TIFF as it is stored, Pillow and OpenCV turn it."""
    write_turned(tmp_path / "photo.tif", IMAGE, orientation)
    got = run(tmp_path, "photo.tif", "--orientation", "stored")
    np.testing.assert_array_equal(got, refined(IMAGE))


def test_an_image_without_orientation_is_not_said_to_be_turned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_turned(tmp_path / "photo.png", IMAGE, 1)
    run(tmp_path, "photo.png", "--orientation", "stored")
    assert "EXIF" not in capsys.readouterr().out


@pytest.mark.parametrize("orientation", [2, 3, 4, "square"])
def test_where_both_fit_it_must_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int | str
) -> None:
    image, labels, number = IMAGE, LABELS, orientation
    if orientation == "square":
        image, labels, number = IMAGE[:, :HEIGHT], LABELS[:, :HEIGHT], 6
    assert isinstance(number, int)
    write_turned(tmp_path / "photo.png", image, number)
    stored = run(tmp_path, "photo.png", "--orientation", "stored", labels=labels)
    np.testing.assert_array_equal(stored, refined(image, labels))
    upright = run(tmp_path, "photo.png", "--orientation", "upright", labels=labels)
    np.testing.assert_array_equal(upright, refined(TURNS[number](image), labels))
    out = tmp_path / "none.png"
    assert main(["refine", str(tmp_path / "photo.png"), str(tmp_path / "labels.png"), "-o", str(out)]) == 1
    errors = capsys.readouterr().err
    assert (
        f"labels.png: fits {tmp_path / 'photo.png'} as it is stored and as its EXIF turns it (orientation {number})"
        in errors
    )
    assert "Say --orientation upright or stored" in errors
    assert not out.exists()
