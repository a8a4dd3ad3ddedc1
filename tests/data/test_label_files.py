"""Label images as other programs write them: bit depths, formats, alpha, and files that claim to be large."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_folder
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from samples import photo

from deeplab_crf.crf.refine_files import RefineSettings, plan_file, refine_file
from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.data.label_files import read_labels

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])


def png(path: Path, depth: int, colour_type: int, size: tuple[int, int], raw: bytes) -> Path:
    """Write a PNG of any bit depth, which Pillow cannot do. colour_type: 0 gray, 3 palette, 4 gray and alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48))) if colour_type == 3 else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(raw, 9))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("colour_type", [0, 3])
def test_ids_of_2_and_4_bits_are_not_spread_over_255(tmp_path: Path, colour_type: int) -> None:
    two = png(tmp_path / "two.png", 2, colour_type, (2, 4), b"\x00\x1b\x00\xe4")
    four = png(tmp_path / "four.png", 4, colour_type, (2, 4), b"\x00\x01\x23\x00\x32\x10")
    for path in (two, four):
        np.testing.assert_array_equal(read_labels(path).ids, IDS)


def test_ids_of_1_bit(tmp_path: Path) -> None:
    Image.fromarray(IDS > 1).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").ids, IDS > 1)


@pytest.mark.parametrize("header", ["P5 4 2 3\n", "P5 4 2 255\n", "P2 4 2 20\n"])
def test_ids_of_a_pgm_with_its_own_largest_value(tmp_path: Path, header: str) -> None:
    values = bytes(IDS.ravel().tolist()) if header.startswith("P5") else " ".join(map(str, IDS.ravel())).encode()
    (tmp_path / "a.pgm").write_bytes(header.encode() + values + b"\n")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.pgm").ids, IDS)


def test_ids_of_a_pgm_of_16_bits(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 300\n" + np.array([0, 7, 300], ">u2").tobytes())
    np.testing.assert_array_equal(read_labels(tmp_path / "a.pgm").ids, [[0, 7, 300]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_depths(tmp_path: Path, dtype: type, suffix: str) -> None:
    if (dtype, suffix) == (np.int32, ".png"):
        pytest.skip("PNG has no 32 bits")
    top = {np.uint8: 255, np.uint16: 65535, np.int32: 70000}[dtype]
    ids = np.where(IDS == 3, top, IDS)
    Image.fromarray(ids.astype(dtype)).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}").ids, ids)


def test_negative_ids_of_a_tiff(tmp_path: Path) -> None:
    Image.fromarray((IDS - 1).astype(np.int32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").ids, IDS - 1)


def test_opaque_alpha_is_ignored_and_transparency_refused(tmp_path: Path) -> None:
    alpha = np.full_like(IDS, 255)
    for name in ("opaque.png", "transparent.png"):
        bands = [Image.fromarray(band.astype(np.uint8)) for band in (IDS, alpha)]
        Image.merge("LA", bands).save(tmp_path / name)
        alpha[1, 2] = 7
    np.testing.assert_array_equal(read_labels(tmp_path / "opaque.png").ids, IDS)
    with pytest.raises(ValueError, match=r"transparent\.png: labels must be opaque; the pixel at row 1, column 2 is"):
        read_labels(tmp_path / "transparent.png")


@pytest.mark.parametrize("mode", ["F", "RGB", "RGBA"])
def test_what_holds_no_ids_is_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"a.tif: labels must be one channel of class ids .* mode {mode}\\."):
        read_labels(tmp_path / "a.tif")


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(IDS.astype(np.uint8)), Image.fromarray(IDS.astype(np.uint8))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a\.tif: labels must be one image; this file has 2 pages"):
        read_labels(tmp_path / "a.tif")


def test_labels_larger_than_the_image_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9000 x 9000 pixels, which Pillow decodes without a warning, in 10 kB."""
    path = png(tmp_path / "labels.png", 1, 0, (9000, 9000), bytes(9000 * (1 + 9000 // 8)))
    Image.fromarray(photo(24, 32)).save(tmp_path / "image.png")
    root = write_folder(tmp_path / "data", train=1, val=1)
    (root / "labels" / "train" / "train0.png").write_bytes(path.read_bytes())
    decoded, load = [], PngImageFile.load

    def remember(self: PngImageFile) -> object:
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", remember)
    with pytest.raises(ValueError, match=r"labels are 9000 x 9000 .* the image is 24 x 32: must agree"):
        refine_file(plan_file(tmp_path / "image.png", path, tmp_path / "out.png"), RefineSettings())
    with pytest.raises(ValueError, match=r"train0\.png: labels must have the size of .*; got \(9000, 9000\)"):
        _ = open_dataset("folder", root, "train")[0]
    assert (32, 24) in decoded
    assert (9000, 9000) not in decoded


def test_more_pixels_than_pillow_decodes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    png(path, 1, 0, (9000, 9000), b"")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 10**5, 10**5)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image .*Cut it into tiles; .*MAX_IMAGE_PIXELS"):
        read_labels(path)
