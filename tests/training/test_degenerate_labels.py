"""Labels that teach or measure nothing: a 0/255 mask, void alone, one class; and classes that are absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import CLASSES, write_folder
from PIL import Image
from training_runs import make, run, stored

from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.evaluation.class_pixels import check_two_classes, count_pixels
from deeplab_crf.training.class_weights import balanced
from deeplab_crf.training.log import read_log

pytestmark = pytest.mark.usefixtures("small_networks")


def relabel(root: Path, change: Any, split: str = "train") -> Path:
    """Puts ``change(labels)`` in the place of each label image of the split; returns ``root``."""
    for path in (root / "labels" / split).iterdir():
        Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)
    return root


def masks(root: Path, split: str = "train") -> Path:
    """Two classes, and labels of 0 and 255."""
    (root / "classes.txt").write_text("background\nthing\n")
    return relabel(root, lambda labels: np.where(labels == 2, 255, 0), split)


def test_a_mask_of_0_and_255_is_one_class(tmp_path: Path) -> None:
    """It trained to mIoU 1.0 before."""
    root = masks(masks(write_folder(tmp_path / "data")), "val")
    with pytest.raises(
        ValueError, match=r"nothing can be learnt on train: background \(0\) is the only class with pix"
    ) as caught:
        run(make(root), tmp_path / "out")
    assert str(caught.value).startswith(f"{root / 'labels' / 'train'}: ")
    assert "there is none of thing (1). 255 means unlabelled pixels, " in str(caught.value)
    assert str(caught.value).endswith("; if it is a class of yours, thing say, give --map-labels 255=1")
    assert not (tmp_path / "out").exists()


def test_void_alone_names_files_and_split(tmp_path: Path) -> None:
    """The loss was 0 before, the mean IoU NaN, the status 0."""
    root = relabel(write_folder(tmp_path / "data"), lambda labels: np.full_like(labels, 255))
    message = (
        r"nothing can be learnt on train: .* no pixel of any class, 255 .* alone \(train0.png, train1.png, train2.png, "
    )
    with pytest.raises(ValueError, match=message):
        run(make(root), tmp_path / "out")
    with pytest.raises(ValueError, match=r"255 means unlabelled pixels, 100.0% of them"):
        run(make(root), tmp_path / "out")
    root = relabel(write_folder(tmp_path / "other"), lambda labels: np.full_like(labels, 255), "val")
    with pytest.raises(ValueError, match=r"nothing can be measured on val: .* \(val0.png, val1.png\)"):
        run(make(root, val_split="val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_class_without_void_gets_no_advice_about_it(tmp_path: Path) -> None:
    root = relabel(write_folder(tmp_path), lambda labels: np.full_like(labels, 1))
    dataset = open_dataset("folder", root, "train")
    with pytest.raises(
        ValueError, match=r"sky \(1\) is the only class .*, there is none of ground \(0\), thing \(2\)$"
    ):
        check_two_classes(dataset, "train", count_pixels(dataset), "measured")


def test_absent_classes_are_named_and_the_training_goes_on(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", names=(*CLASSES, "fog", "rain"))
    relabel(root, lambda labels: np.where(labels == 2, 1, labels), "val")
    notes: list[str] = []
    outcome = run(make(root, val_split="val", iterations=1), tmp_path / "out", note=notes.append)
    assert notes == [
        "no pixel in the labels of train is of fog (3), rain (4): these classes cannot be learnt",
        "no pixel in the labels of val is of thing (2), fog (3), rain (4): these classes are left out of the mean IoU unless they "
        "are predicted",
    ]
    assert np.isfinite(outcome.rows[-1].mean_iou)


def test_counting_ends_when_every_class_was_seen(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset("folder", data, "train")
    whole = count_pixels(dataset)
    assert whole.sum() == 5 * 40 * 48
    assert whole[[0, 1, 2, 255]].all()
    np.testing.assert_array_equal(count_pixels(dataset, [0], enough=9), count_pixels(dataset, enough=3))


def test_iterations_without_a_labelled_pixel_change_nothing(data: Path, tmp_path: Path) -> None:
    """Their loss was a perfect 0 before, and momentum and weight decay moved the weights all the same."""
    root = write_folder(tmp_path / "data", train=4)
    for name in ("train2", "train3"):
        path = root / "labels" / "train" / f"{name}.png"
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(path)
    settings = make(root, batch=1, iterations=8, momentum=0.9, weight_decay=0.1, average=0.5)
    outcome = run(settings, tmp_path / "out")
    void = [row.loss is None for row in outcome.rows]
    assert sum(void) == 4  # two epochs, each with two of them
    assert all(row.loss > 0.1 for row in outcome.rows if row.loss is not None)
    assert read_log(tmp_path / "out" / "log.csv") == list(outcome.rows)
    first = void.index(True, 1)
    before, after = (stopped_after(settings, tmp_path / str(count), count) for count in (first, first + 1))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def stopped_after(settings: Any, out: Path, count: int) -> dict[str, torch.Tensor]:
    """The network's state after ``count`` iterations, at least one."""
    seen: list[int] = []
    run(settings, out, report=lambda row: seen.append(row.iteration), should_stop=lambda: len(seen) + 1 >= count)
    assert stored(out)["iteration"] == count
    return stored(out)["network"]


def test_a_training_that_never_saw_a_labelled_pixel_is_an_error(tmp_path: Path) -> None:
    """Two classes have pixels, but none where scores stand."""

    def hidden(labels: np.ndarray) -> np.ndarray:
        hidden = np.full_like(labels, 255)
        hidden[1::8, 1::8], hidden[2::8, 2::8] = 0, 1
        return hidden

    root = relabel(write_folder(tmp_path / "data", size=(33, 33)), hidden)
    with pytest.raises(
        ValueError, match=r"nothing was learnt in 6 iterations: no crop held a labelled pixel .* 8th row"
    ):
        run(make(root, scales=[1.0], mirror=False), tmp_path / "out")
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_balanced_weights_of_nothing_are_one() -> None:
    assert balanced(np.zeros(3, np.int64)).tolist() == [1, 1, 1]
