"""Validation images: another split, or a part of the train split that is held back; and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dataset_files import write_folder, write_pair
from PIL import Image
from training_runs import assert_same_state, losses, make, run

from deeplab_crf.data.datasets import held_back, open_dataset, read_names
from deeplab_crf.models import load_model
from deeplab_crf.runtime.processes import World
from deeplab_crf.training.splits import open_splits
from deeplab_crf.training.validation import validate

pytestmark = pytest.mark.usefixtures("small_networks")

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Six images in ``images``, without splits."""
    for i in range(6):
        write_pair(tmp_path / "plain", f"p{i}", (40, 48), seed=i, split=".")
    (tmp_path / "plain" / "classes.txt").write_text("ground\nsky\nthing\n")
    return tmp_path / "plain"


def test_plain_folders_do_not_validate_on_what_they_train_on(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'val', .*--val-fraction 0\.2 holds some back"):
        run(make(plain, val_split="val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert open_splits(make(plain, val_split=""), ALONE).validation is None


def test_an_image_whose_orientation_is_not_known_ends_a_training_before_it_begins(plain: Path) -> None:
    path = plain / "images" / "p5.png"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(path, exif=exif)
    with pytest.raises(
        ValueError, match=r"p5\.png: fits .*p5\.png as it is stored and as its EXIF turns it.*exif_transpose"
    ):
        open_splits(make(plain, val_split=""), ALONE)


def test_a_part_is_held_back_and_kept_when_the_training_goes_on(plain: Path, tmp_path: Path) -> None:
    settings = make(plain, val_fraction=0.3, val_seed=1, validate_every=3, iterations=4)
    notes: list[str] = []
    whole = run(settings, tmp_path / "whole", note=notes.append)
    names = [item.name for item in open_dataset("folder", plain, "all").items]
    held = held_back(names, 0.3, 1)
    assert len(held) == 2
    assert notes == [
        "2 of the 6 images of train are held back for validation, by val_fraction 0.3 and val_seed 1: "
        + ", ".join(held)
    ]
    assert read_names(tmp_path / "whole" / "val.txt") == held
    network, _ = load_model(tmp_path / "whole" / "weights.safetensors")
    found = validate(network, open_dataset("folder", plain, "all").only(held), ALONE)
    assert whole.rows[-1].mean_iou == found.mean_iou
    out = tmp_path / "out"
    run(settings, out, should_stop=lambda: True)
    splits = open_splits(settings, ALONE)
    assert {item.name for item in splits.train.items} == set(names) - set(held)
    again = run(settings, out, resume=True)
    assert_same_state(tmp_path / "whole", out)
    assert losses(again) == losses(whole)
    with pytest.raises(ValueError, match=r"other settings: val_fraction = 0\.5 \(there 0\.3\)"):
        run(make(plain, val_fraction=0.5, val_seed=1, iterations=4), out, resume=True)


def test_images_that_come_later_do_not_move_the_part_unseen(plain: Path, tmp_path: Path) -> None:
    """They would be trained on or validated on in the place of others."""
    settings = make(plain, val_fraction=0.3, iterations=4)
    run(settings, tmp_path / "out", should_stop=lambda: True)
    write_pair(plain, "new", (40, 48), seed=9, split=".")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of a training on other data: images or classes in "):
        run(settings, tmp_path / "out", resume=True)


def test_images_of_both_splits_are_said(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=5, val=1)
    (root / "images" / "train" / "sub").mkdir()
    assert open_splits(make(root, val_split="val"), ALONE).notes == ()
    notes = open_splits(make(root, val_split="train"), ALONE).notes
    assert notes == ("the training sees 5 of the 5 images of train too: the validation says little about others",)
