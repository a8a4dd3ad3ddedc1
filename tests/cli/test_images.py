"""deeplab_crf.data: images, palettes, and files that are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_crf.data.images import (
    LabelImage,
    overlay,
    side_by_side,
    voc_palette,
    write_labels,
)
from deeplab_crf.data.label_files import read_labels
from deeplab_crf.data.rasters import read_image
from deeplab_crf.runtime.files import IMAGE_SUFFIXES, atomic_write, files_by_stem

PALETTE = (10, 20, 30, 200, 0, 0, 0, 200, 0)


def mode(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_makes_the_folder_and_the_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    with atomic_write(target) as stream:
        stream.write(b"half")
        assert not target.exists()
        stream.write(b"whole")
    assert target.read_bytes() == b"halfwhole"
    assert names(target.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_atomic_write_interrupted_keeps_the_old_file_only(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_write(target) as stream:
            stream.write(b"half of the new")
            stream.flush()
            raise error

    with pytest.raises(error):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_atomic_write_names_the_file_where_the_disk_is_full(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*a\.png'") as caught,
        atomic_write(tmp_path / "a.png"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert not any(tmp_path.iterdir())


def test_atomic_write_gives_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_by_stem_takes_images_and_refuses_two_of_one_stem(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert files_by_stem(tmp_path, IMAGE_SUFFIXES) == {"a": tmp_path / "a.jpg", "b": tmp_path / "b.PNG"}
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png: files are matched by stem"):
        files_by_stem(tmp_path, IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("L", (4, 5)), ("1", (4, 5)), ("LA", (4, 5)), ("RGB", (4, 5, 3)), ("RGBA", (4, 5, 3)), ("P", (4, 5, 3))],
)
def test_read_image_gives_gray_or_rgb_bytes(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(colours).convert(kind).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert image.dtype == np.uint8
    assert image.shape == shape
    assert image.flags.writeable
    if kind.startswith("RGB"):
        np.testing.assert_array_equal(image, colours)


def test_read_image_scales_16_bit_gray_to_255(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_image(tmp_path / "deep.png", (0, 65535)), [[0, 1, 255]])
    with pytest.raises(ValueError, match=r"deep\.png: the image must be in 0\.\.255.*uint16.*--image-range 0,65535"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_broken_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.png"
    if content is None:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
        content = path.read_bytes()[:700]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png: cannot be read as an image"):
        read_image(path)


def test_labels_keep_ids_and_palette(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 0]])
    write_labels(tmp_path / "labels.png", LabelImage(ids, PALETTE))
    again = read_labels(tmp_path / "labels.png")
    np.testing.assert_array_equal(again.ids, ids)
    assert again.palette == PALETTE
    assert mode(tmp_path / "labels.png") == "P"


def test_labels_without_palette_get_voc_colours(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.png", LabelImage(np.array([[0, 255]])))
    assert read_labels(tmp_path / "labels.png").palette == voc_palette(256)
    assert voc_palette(22)[:9] == (0, 0, 0, 128, 0, 0, 0, 128, 0)
    assert voc_palette(22)[-3:] == (128, 64, 128)


def test_a_palette_that_is_too_short_grows(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.png", LabelImage(np.array([[0, 4]]), PALETTE))
    assert read_labels(tmp_path / "labels.png").palette == PALETTE + voc_palette(5)[9:]


def test_ids_above_255_take_16_bits(tmp_path: Path) -> None:
    ids = np.array([[0, 256, 65535]])
    write_labels(tmp_path / "labels.png", LabelImage(ids))
    assert mode(tmp_path / "labels.png").startswith("I")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "labels.png")), ids)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png").ids, ids)
    with pytest.raises(ValueError, match=r"class ids must lie in 0\.\.65535"):
        write_labels(tmp_path / "too_many.png", LabelImage(np.array([[65536]])))


def test_labels_refuse_colours_and_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "colours.png")
    Image.new("L", (4, 4)).save(tmp_path / "lossy.jpg")
    with pytest.raises(ValueError, match=r"colours\.png: labels must be one channel .* mode RGB\. Convert"):
        read_labels(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"lossy\.jpg: JPEG changes pixel values"):
        read_labels(tmp_path / "lossy.jpg")


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3)])
def test_overlay_tints_classes_and_leaves_black_ones(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 100, dtype=np.uint8)
    ids = np.zeros((6, 8), dtype=np.int64)
    ids[:, 4:] = 1
    painted = np.array(overlay(image, LabelImage(ids, (0, 0, 0, 200, 0, 0))))
    assert (painted[:, :4] == 100).all()
    assert (painted[:, 4] == [200, 0, 0]).all(), "the border is drawn in the class's colour"
    assert (painted[:, 5:] == [150, 50, 50]).all()
    with pytest.raises(ValueError, match="image's size"):
        overlay(image, LabelImage(ids.T))


def test_side_by_side() -> None:
    row = side_by_side([Image.new("RGB", (3, 4), "red"), Image.new("RGB", (5, 6), "blue")], gap=2)
    assert row.size == (10, 6)
    assert row.getpixel((4, 0)) == (255, 255, 255)
    assert row.getpixel((5, 5)) == (0, 0, 255)
