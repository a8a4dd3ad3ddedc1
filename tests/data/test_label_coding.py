"""Label files whose values are not the class ids yet: colours with a table, masks of 0 and 255, ids that start at 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import CLASSES, write_folder
from PIL import Image

from deeplab_crf.data.classes import CAMVID_CLASSES, VOC_CLASSES, voc_palette
from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.data.label_coding import LabelCoding, make_coding, parse_label_map
from deeplab_crf.data.label_colors import ColorTable, read_colors
from deeplab_crf.data.label_files import read_labels

# CamVid's label_colors.txt (mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/data/label_colors.txt), tabs as there.
CAMVID_FILE = (
    "64 128 64\tAnimal\n192 0 128\tArchway\n0 128 192\tBicyclist\n0 128 64\tBridge\n128 0 0\t\tBuilding\n64 0 128\tCar\n"
    "64 0 192\tCartLuggagePram\n192 128 64\tChild\n192 192 128\tColumn_Pole\n64 64 128\tFence\n128 0 192\tLaneMkgsDriv\n"
    "192 0 64\tLaneMkgsNonDriv\n128 128 64\tMisc_Text\n192 0 192\tMotorcycleScooter\n128 64 64\tOtherMoving\n"
    "64 192 128\tParkingBlock\n64 64 0\t\tPedestrian\n128 64 128\tRoad\n128 128 192\tRoadShoulder\n0 0 192\t\tSidewalk\n"
    "192 128 128\tSignSymbol\n128 128 128\tSky\n64 128 192\tSUVPickupTruck\n0 0 64\t\tTrafficCone\n0 64 64\t\tTrafficLight\n"
    "192 64 128\tTrain\n128 128 0\tTree\n192 128 192\tTruck_Bus\n64 0 64\t\tTunnel\n192 192 0\tVegetationMisc\n"
    "0 0 0\t\tVoid\n64 192 0\tWall\n"
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_ids_are_replaced_all_at_once() -> None:
    replaced = parse_label_map("255=1, 1=0,2=1,0=255")
    assert replaced == {255: 1, 1: 0, 2: 1, 0: 255}
    ids = LabelCoding(replaced=replaced).apply(np.array([[0, 1, 2, 3, 255]], np.uint8))
    np.testing.assert_array_equal(ids, [[255, 0, 1, 3, 1]])
    assert parse_label_map("") == {}
    assert parse_label_map("0=255,1..3=0..2,20..22=9,-1=255") == {
        0: 255, 1: 0, 2: 1, 3: 2, 20: 9, 21: 9, 22: 9, -1: 255,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("255", "OLD=NEW pairs.*got '255'"),
        ("255:1", "OLD=NEW pairs"),
        ("a=1", "OLD=NEW pairs"),
        ("1=0,", "OLD=NEW pairs.*got ''"),
        ("1=0,1=2", "each id once; got 1 twice"),
        ("1..3=0..1", "ranges of the same length"),
        ("3..1=0", "ranges of the same length"),
        ("0..9999999999=0", "ranges of the same length"),
        ("1=-1", r"ids in 0\.\.65535; got 1 = -1"),
        ("1=70000", r"ids in 0\.\.65535; got 1 = 70000"),
    ],
)
def test_maps_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_coding(text)


def test_a_mapping_is_checked_too() -> None:
    with pytest.raises(ValueError, match="whole numbers by ids"):
        make_coding({1.5: 0})  # type: ignore[dict-item]


def test_the_table_of_camvid(tmp_path: Path) -> None:
    table = read_colors(write(tmp_path / "label_colors.txt", CAMVID_FILE))
    assert len(table.entries) == 32
    assert table.entries[0] == (0, (64, 128, 64))
    assert table.entries[30] == (30, (0, 0, 0))
    grouped = {colour: index for index, colour in read_colors("camvid").entries}
    assert {colour for _, colour in table.entries} <= set(grouped)
    names = {line.split()[3]: tuple(map(int, line.split()[:3])) for line in CAMVID_FILE.splitlines()}
    found = {name: grouped[colour] for name, colour in names.items()}  # type: ignore[index]
    assert [CAMVID_CLASSES[found[name]] for name in ("Sky", "Sidewalk", "SUVPickupTruck", "Child", "Archway")] == [
        "sky", "pavement", "car", "pedestrian", "building",
    ]  # fmt: skip
    assert found["Void"] == 255


def test_the_tables_of_voc_and_cityscapes() -> None:
    voc = read_colors("voc")
    assert voc.entries[15] == (15, (192, 128, 128))  # person
    assert voc.entries[-1] == (255, (224, 224, 192))
    assert voc.entries[:-1] == tuple((i, voc_palette(21)[3 * i : 3 * i + 3]) for i in range(len(VOC_CLASSES)))
    cityscapes = dict(reversed(read_colors("cityscapes").entries))
    assert (cityscapes[0], cityscapes[13], cityscapes[18]) == ((128, 64, 128), (0, 0, 142), (119, 11, 32))


@pytest.mark.parametrize(
    "text",
    [
        "0 ground 1 2 3\n1 the sky 4 5 6\n7 thing 7 8 9\n",
        "﻿0 1 2 3 ground\r\n1 4 5 6 the sky\r\n7 7 8 9 thing\r\n",
        "0,ground,1,2,3\n1,the sky,4, 5, 6\n7,thing,7,8,9\n",
        "id,name,r,g,b\n0,ground,1,2,3\n1,the sky,4,5,6\n7,thing,7,8,9\n",
        '[{"id": 0, "color": [1, 2, 3]}, {"id": 1, "color": [4, 5, 6]}, {"id": 7, "name": "x", "color": [7, 8, 9]}]',
        '{"labels": [{"id": 0, "color": [1, 2, 3]}, {"id": 1, "color": [4, 5, 6]}, {"id": 7, "color": [7, 8, 9]}]}',
        '{"0": [1, 2, 3], "1": [4, 5, 6], "7": [7, 8, 9]}',
    ],
)
def test_tables_with_ids(tmp_path: Path, text: str) -> None:
    table = read_colors(write(tmp_path / "table", text))
    assert table.entries == ((0, (1, 2, 3)), (1, (4, 5, 6)), (7, (7, 8, 9)))


@pytest.mark.parametrize(
    "text",
    [
        "name,r,g,b\nground,1,2,3\nthe sky,4,5,6\n",  # class_dict.csv of CamVid on Kaggle
        "# label:color_rgb:parts:actions\nground:1,2,3::\nthe sky:4,5,6:hand,foot:jumping\n",  # labelmap.txt of CVAT
        "1 2 3\n\n4 5 6 # the sky\n",
        '{"ground": [1, 2, 3], "the sky": [4, 5, 6]}',
    ],
)
def test_tables_without_ids_count_from_zero(tmp_path: Path, text: str) -> None:
    assert read_colors(write(tmp_path / "table", text)).entries == ((0, (1, 2, 3)), (1, (4, 5, 6)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1 2 3 a\n0 ground 4 5 6\n", "another form than the lines before"),
        ("1 2 3 a\nsky\n", "no colour in 'sky'"),
        ("1 2 a\n", "none of: r g b name"),
        ("0.5 0.5 0.5 a\n", "none of|is empty"),
        ("1 2 300 a\n", r"colours in 0\.\.255; got id 0 with \(1, 2, 300\)"),
        ("1 2 3 a\n1 2 3 b\n", r"colour \(1, 2, 3\) stands for both 0 and 1"),
        ('{"a": [1, 2]}', r"a colour must be \[r, g, b\]"),
        ('{"a": [1, 2, 3], "4": [1, 2, 4]}', "every class has an id or none"),
        ("[1]", "JSON must be"),
        ("[" * 100000, "cannot be read as a table"),
        ('{"a"', "cannot be read as a table"),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "table.txt", text)
    with pytest.raises(ValueError, match=f"table.txt.*({message})"):
        read_colors(path)


def test_a_coding_is_told_by_what_it_says(tmp_path: Path) -> None:
    """Reports and searches that go on compare it."""
    path = write(tmp_path / "table.txt", "1 2 3\n4 5 6\n")
    first = str(make_coding("255=1", path))
    assert first.startswith(f"colours of {path} (")
    assert first.endswith("), 255=1")
    assert str(make_coding("255=1", path)) == first
    write(path, "4 5 6\n1 2 3\n")
    assert str(make_coding("255=1", path)) != first
    assert str(make_coding(label_colors="voc")) == "colours of voc"
    assert str(make_coding()) == ""


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ade: no such table of label colours; give a file, or one of voc, camvid"):
        read_colors(tmp_path / "ade")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_ids_and_the_palette(tmp_path: Path, mode: str) -> None:
    coding = LabelCoding(
        ColorTable("table", ((0, (9, 9, 9)), (1, (200, 0, 0)), (2, (0, 200, 0)), (2, (0, 100, 0)))), {2: 3}
    )
    colours = np.array([[[9, 9, 9], [200, 0, 0]], [[0, 200, 0], [0, 100, 0]]], np.uint8)
    Image.fromarray(colours).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    labels = read_labels(tmp_path / "a.png", coding)
    np.testing.assert_array_equal(labels.ids, [[0, 1], [3, 3]])
    assert labels.palette is not None
    assert labels.palette[:6] == (9, 9, 9, 200, 0, 0)
    assert labels.palette[9:] == (0, 200, 0)


def test_an_unknown_colour_is_named_with_a_pixel(tmp_path: Path) -> None:
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[2, 3] = 12, 34, 56
    Image.fromarray(colours).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"a.png: colour \(12, 34, 56\) at row 2, column 3 is not in the label colours voc"
    ):
        read_labels(tmp_path / "a.png", make_coding(label_colors="voc"))


def test_colours_that_are_none_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3)).save(tmp_path / "ink.tif")
    with pytest.raises(ValueError, match=r"ink\.tif: label colours must be RGB or a palette; this image has mode CMYK"):
        read_labels(tmp_path / "ink.tif", make_coding(label_colors="voc"))
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "gray.png")
    with pytest.raises(ValueError, match=r"one channel.*leave --label-colors out"):
        read_labels(tmp_path / "gray.png", make_coding(label_colors="voc"))
    transparent = np.zeros((4, 5, 4), np.uint8)
    transparent[..., 3] = 255
    transparent[1, 2, 3] = 0
    Image.fromarray(transparent).save(tmp_path / "alpha.png")
    with pytest.raises(ValueError, match="row 1, column 2 is transparent"):
        read_labels(tmp_path / "alpha.png", make_coding(label_colors="voc"))
    with pytest.raises(ValueError, match=r"mode RGBA\. Convert its colours to ids with --label-colors"):
        read_labels(tmp_path / "alpha.png")


def test_a_data_set_of_other_ids(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, val=1)
    plain = open_dataset("folder", root, "train")[0].labels
    path = root / "labels" / "train" / "train0.png"
    shifted = np.where(plain == 255, 0, plain + 1).astype(np.uint8)  # 0 is void, classes start at 1
    Image.fromarray(shifted).save(path)
    with pytest.raises(ValueError, match=r"got 3. If the ids start at 1: --map-labels 0=255,1\.\.3=0\.\.2"):
        _ = open_dataset("folder", root, "train")[0]
    read = open_dataset("folder", root, "train", make_coding(f"0=255,1..{len(CLASSES)}=0..{len(CLASSES) - 1}"))[0]
    np.testing.assert_array_equal(read.labels, plain)
    Image.fromarray(np.where(plain == 255, 65535, plain.astype(np.uint16)).astype(np.uint16)).save(path)
    with pytest.raises(
        ValueError, match=r"got 65535\. 65535 is usually void in 16-bit label images: --map-labels 65535=255"
    ):
        _ = open_dataset("folder", root, "train")[0]
    read = open_dataset("folder", root, "train", make_coding("65535=255"))[0]
    np.testing.assert_array_equal(read.labels, plain)


def test_a_data_set_of_colours(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, val=1)
    plain = open_dataset("folder", root, "train")[0].labels
    palette = np.array(voc_palette(256), np.uint8).reshape(-1, 3)
    Image.fromarray(palette[plain]).save(root / "labels" / "train" / "train0.png")
    read = open_dataset("folder", root, "train", make_coding(label_colors="voc"))[0]
    np.testing.assert_array_equal(read.labels, plain)
