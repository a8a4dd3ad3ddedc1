"""Image files of every depth: read without losing bits, with the range and the orientation that they say."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import write_turned
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deeplab_crf.data.images import as_rgb
from deeplab_crf.data.label_files import read_labels
from deeplab_crf.data.rasters import StoredImage, read_header, read_image, read_stored_image

DEEP = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
TWELVE = (DEEP[:, :, 0] >> 4).astype(np.uint16)
BYTES = (DEEP >> 8).astype(np.uint8)


def png(array: NDArray[np.uint16], colour_type: int) -> bytes:
    """A PNG of 16 bits, each row with the filter "sub", after the specification (www.w3.org/TR/png)."""
    height, width = array.shape[:2]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    step = 2 * (array.shape[2] if array.ndim == 3 else 1)
    filtered = rows.copy()
    filtered[:, step:] -= rows[:, :-step]
    data = b"".join(b"\1" + row.tobytes() for row in filtered)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_png_in_colour_keeps_its_16_bits(tmp_path: Path) -> None:
    """Pillow keeps the high bytes alone, so that 12-bit images have 16 levels."""
    path = tmp_path / "deep.png"
    path.write_bytes(png(DEEP, 2))
    np.testing.assert_array_equal(read_stored_image(path).pixels, DEEP)
    path.write_bytes(png(np.dstack([DEEP, DEEP[:, :, :1]]), 6))
    np.testing.assert_array_equal(read_stored_image(path).pixels, DEEP)
    path.write_bytes(png(DEEP[:, :, 0], 0))
    np.testing.assert_array_equal(read_stored_image(path).pixels, DEEP[:, :, 0])
    path.write_bytes(png(DEEP[:, :, :2], 4))
    with pytest.raises(ValueError, match=r"deep\.png: gray with alpha in 16 bits is not read without loss"):
        read_stored_image(path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("uint16.tif", TWELVE),
        ("uint16.png", TWELVE),
        ("int32.tif", TWELVE.astype(np.int32) - 1000),
        ("float32.tif", TWELVE.astype(np.float32) / 4095),
        ("gray.tif", BYTES[:, :, 0]),
        ("colour.tif", BYTES),
        ("colour.webp", np.full((5, 7, 3), 90, np.uint8)),
    ],
)
def test_what_pillow_reads_keeps_its_numbers(tmp_path: Path, name: str, array: NDArray[Any]) -> None:
    Image.fromarray(array).save(tmp_path / name)
    stored = read_stored_image(tmp_path / name)
    assert (stored.orientation, stored.image_range, stored.pixels.dtype) == (1, None, array.dtype)
    np.testing.assert_array_equal(stored.pixels, array)


def test_int16_tiff(tmp_path: Path) -> None:
    array = TWELVE.astype(np.int16) - 1024
    image = Image.fromarray(array.view(np.uint16))
    image.save(tmp_path / "ct.tif", tiffinfo={339: 2})  # SampleFormat: signed
    np.testing.assert_array_equal(read_stored_image(tmp_path / "ct.tif").pixels, array)
    with pytest.raises(ValueError, match=r"ct\.tif: the image must be in 0\.\.255.*values in -.*--image-range -"):
        read_image(tmp_path / "ct.tif")
    np.testing.assert_allclose(read_image(tmp_path / "ct.tif", (-1024, 3071)), TWELVE * (255 / 4095), rtol=1e-5)


@pytest.mark.parametrize("maximum", [4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_gray_map_says_its_range(tmp_path: Path, maximum: int, plain: bool) -> None:
    """Its third number is the value of white; https://netpbm.sourceforge.net/doc/pgm.html."""
    array = TWELVE if maximum == 4095 else DEEP[:, :, 0]
    header = f"P{2 if plain else 5} 7 5 {maximum}\n".encode()
    body = " ".join(map(str, array.ravel())).encode() if plain else array.astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(header + body)
    stored = read_stored_image(tmp_path / "x.pgm")
    np.testing.assert_array_equal(stored.pixels, array)
    assert stored.image_range == (0, maximum)
    np.testing.assert_allclose(read_image(tmp_path / "x.pgm"), array * (255 / maximum), rtol=1e-5)
    np.testing.assert_allclose(read_image(tmp_path / "x.pgm", (0, 1000)), array * 0.255, rtol=1e-5)


def tiff(data: bytes, size: tuple[int, int], bits: list[int], *extra: tuple[int, int, int]) -> bytes:
    """A TIFF 6.0 of one strip. extra: further entries, (tag, type, value)."""
    rows, columns = size
    entries = [
        (256, 3, columns),
        (257, 3, rows),
        (258, 3, 180),
        (259, 3, 1),
        (273, 4, 200),
        (277, 3, len(bits)),
        *extra,
    ]
    entries = sorted([*entries, (279, 4, len(data))])
    if len(bits) == 1:
        entries = [(258, 3, bits[0]) if tag == 258 else (tag, kind, value) for tag, kind, value in entries]
    content = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag, kind, value in entries:
        content += struct.pack("<HHII", tag, kind, len(bits) if tag == 258 else 1, value)
    return (content + bytes(4)).ljust(180, b"\0") + struct.pack(f"<{len(bits)}H", *bits).ljust(20, b"\0") + data


def test_unsigned_integers_of_32_bits(tmp_path: Path) -> None:
    """Pillow reads them as signed ones."""
    array = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    for sample_format, wanted in ((1, np.uint32), (2, np.int32)):
        content = tiff(array.astype("<u4").tobytes(), (1, 3), [32], (262, 3, 1), (339, 3, sample_format))
        (tmp_path / "wide.tif").write_bytes(content)
        stored = read_stored_image(tmp_path / "wide.tif").pixels
        assert stored.dtype == wanted
        np.testing.assert_array_equal(stored, array.view(wanted))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1.0, np.nan, 200.0]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"nan\.tif: the image must be finite"):
        read_image(tmp_path / "nan.tif")


def test_bands_for_viewing() -> None:
    bands = np.arange(5 * 7 * 5).reshape(5, 7, 5).astype(np.float32)
    np.testing.assert_array_equal(as_rgb(bands), bands[:, :, :3])
    for gray in (bands[:, :, 0], bands[:, :, :1], bands[:, :, :2]):
        np.testing.assert_array_equal(as_rgb(gray), np.dstack([bands[:, :, 0]] * 3))


# ---------------------------------------------------------------- TIFF by tifffile


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (DEEP, {"photometric": "rgb"}),
        (DEEP.astype(">u2"), {"photometric": "rgb", "byteorder": ">"}),
        (np.dstack([DEEP, DEEP]), {"photometric": "minisblack", "planarconfig": "contig"}),
        (np.dstack([DEEP, DEEP]).transpose(2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}),
        (np.dstack([BYTES, BYTES[:, :, :1]]), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (np.dstack([BYTES, BYTES]), {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}),
        (DEEP / np.float32(65535), {"photometric": "rgb"}),
        (DEEP / np.float64(65535), {"photometric": "rgb"}),
        (DEEP.astype(np.int16), {"photometric": "rgb"}),
        (DEEP[:, :, :2], {"photometric": "minisblack", "planarconfig": "contig"}),
    ],
)
def test_tiff_with_bands(tmp_path: Path, array: NDArray[Any], options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    options = dict(options)
    order = options.pop("byteorder", None)
    with tifffile.TiffWriter(tmp_path / "bands.tif", byteorder=order) as writer:
        writer.write(array, **options)
    pixels = read_stored_image(tmp_path / "bands.tif").pixels
    assert pixels.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(
        pixels, np.moveaxis(array, 0, -1) if options.get("planarconfig") == "separate" else array
    )


def test_tiff_drops_alpha(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    array = np.dstack([DEEP, DEEP[:, :, 0]])
    tifffile.imwrite(tmp_path / "alpha.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_stored_image(tmp_path / "alpha.tif").pixels, DEEP)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning", "ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("cut", [10, 60, 150])
def test_a_damaged_tiff_is_named(tmp_path: Path, cut: int) -> None:
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    tifffile.imwrite(tmp_path / "bands.tif", np.dstack([DEEP, DEEP]), photometric="minisblack", planarconfig="contig")
    whole = (tmp_path / "bands.tif").read_bytes()
    (tmp_path / "bands.tif").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"bands\.tif: cannot be read as"):
        read_stored_image(tmp_path / "bands.tif")


def test_pages_that_go_round_in_circles_end(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    bands = np.dstack([BYTES, BYTES[:, :, :1]])
    tifffile.imwrite(tmp_path / "circle.tif", bands, photometric="rgb", extrasamples=["unspecified"])
    content = bytearray((tmp_path / "circle.tif").read_bytes())
    link = 10 + 12 * struct.unpack("<H", content[8:10])[0]
    content[link : link + 4] = struct.pack("<I", 8)  # the next page is the first
    (tmp_path / "circle.tif").write_bytes(content)
    with pytest.raises(ValueError, match=r"circle\.tif: (holds \d+ pages of 5 x 7|cannot be read as)"):
        read_stored_image(tmp_path / "circle.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_page_without_dimensions_is_named(tmp_path: Path) -> None:
    """Pillow raises TypeError for it, when pages are counted."""
    whole = tiff(bytes(3), (1, 3), [8], (262, 3, 1))
    second = len(whole)
    link = 10 + 12 * struct.unpack("<H", whole[8:10])[0]
    content = whole[:link] + struct.pack("<I", second) + whole[link + 4 :] + struct.pack("<HHHIII", 1, 262, 3, 1, 1, 0)
    (tmp_path / "pages.tif").write_bytes(content)
    for read in (read_stored_image, read_labels):
        with pytest.raises(ValueError, match=r"pages\.tif: cannot be read as an image"):
            read(tmp_path / "pages.tif")


def test_a_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(BYTES).save(tmp_path / "exif.png", exif=b"Exif\0\0M\3\0*\0\0\0\x08")
    stored = read_stored_image(tmp_path / "exif.png")
    assert stored.orientation == 1
    np.testing.assert_array_equal(stored.pixels, BYTES)


def test_a_tiff_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    tifffile.imwrite(tmp_path / "huge.tif", np.dstack([DEEP, DEEP]), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with pytest.raises(ValueError, match=r"huge\.tif: cannot be read as a TIFF \(it has 35 pixels, more than 30\)"):
        read_stored_image(tmp_path / "huge.tif")


def test_pages_of_one_size_are_no_bands(tmp_path: Path) -> None:
    """A stack would be read as its first page; smaller pages are overviews, as in a cloud-optimised GeoTIFF."""
    pages = [Image.fromarray(np.ascontiguousarray(DEEP[:, :, band])) for band in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"stack\.tif: holds 3 pages of 5 x 7; .* bands of that page"):
        read_stored_image(tmp_path / "stack.tif")
    pages[0].save(tmp_path / "overviews.tif", save_all=True, append_images=[pages[1].resize((4, 3))])
    np.testing.assert_array_equal(read_stored_image(tmp_path / "overviews.tif").pixels, DEEP[:, :, 0])
    tifffile = pytest.importorskip("tifffile", reason="TIFF with several bands needs tifffile")
    tifffile.imwrite(tmp_path / "bands.tif", np.stack([DEEP, DEEP]), photometric="rgb")
    with pytest.raises(ValueError, match=r"bands\.tif: holds 2 pages of 5 x 7"):
        read_stored_image(tmp_path / "bands.tif")
    six = np.dstack([DEEP, DEEP])
    tifffile.imwrite(tmp_path / "six.tif", np.stack([six, six]), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"six\.tif: holds 2 pages of 5 x 7"):
        read_stored_image(tmp_path / "six.tif")


def test_without_tifffile_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads colour of 16 bits in 8."""
    (tmp_path / "rgb.tif").write_bytes(tiff(bytes(6), (1, 1), [16, 16, 16], (262, 3, 2)))
    with Image.open(tmp_path / "rgb.tif") as image:
        assert image.mode == "RGB"
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ValueError, match=r'rgb\.tif: a TIFF with several bands.*pip install "deeplab-crf\[tiff\]"'):
        read_stored_image(tmp_path / "rgb.tif")


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_as_pillow_turns_them(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Pillow itself turns TIFF while it decodes, which must not hide how the image is stored."""
    path = tmp_path / f"turned{suffix}"
    write_turned(path, BYTES, orientation)
    with Image.open(path) as image:
        want = np.array(ImageOps.exif_transpose(image))
    stored = read_stored_image(path)
    np.testing.assert_array_equal(stored.values(), want)
    np.testing.assert_array_equal(stored.values(upright=False), BYTES)
    assert stored.size(upright=True) == want.shape[:2]
    assert stored.orientation == (orientation if 2 <= orientation <= 8 else 1)
    header = read_header(path)
    assert header is not None
    assert (header.pixels.shape, header.orientation) == (BYTES.shape[:2], stored.orientation)


def test_whether_labels_belong_to_the_upright_image() -> None:
    image, partner = StoredImage(Path("a.jpg"), BYTES, 6), Path("a.png")  # 5 x 7, upright 7 x 5
    assert image.is_upright_for(lambda size: size == (7, 5), partner, "")
    assert not image.is_upright_for(lambda size: size == (5, 7), partner, "")
    assert image.is_upright_for(lambda size: False, partner, "")  # whoever compares the sizes says that they differ
    for orientation, pixels in ((2, BYTES), (3, BYTES), (4, BYTES), (6, BYTES[:5, :5]), (8, BYTES)):
        stored = StoredImage(Path("a.jpg"), pixels, orientation)
        with pytest.raises(
            ValueError, match=rf"a\.png: fits a\.jpg as it is stored and as.*\(orientation {orientation}\).*Do"
        ):
            stored.is_upright_for(lambda size: True, partner, "Do something")
        assert StoredImage(Path("a.jpg"), pixels).is_upright_for(lambda size: True, partner, "")
