"""``deeplab-crf evaluate --scores`` on a folder of predicted label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_folder
from image_files import read
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.cli import main
from deeplab_crf.data.classes import voc_palette
from deeplab_crf.evaluation.metrics import ConfusionMatrix


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", train=1, val=2)


def predict(root: Path, folder: Path) -> dict[str, NDArray[np.uint8]]:
    """The labels with some mistakes, a class at every pixel, as palette images."""
    folder.mkdir()
    predictions = {}
    for path in sorted((root / "labels" / "val").iterdir()):
        labels = read(path)
        labels[labels == 255] = 0
        labels[::3, ::4] = (labels[::3, ::4] + 1) % 3
        image = Image.fromarray(labels)
        image.putpalette(voc_palette(3))
        image.save(folder / path.name)
        predictions[path.stem] = labels
    return predictions


def evaluate(root: Path, folder: Path, out: Path, *options: str) -> dict[str, Any]:
    words = [
        "evaluate",
        "--data",
        f"folder:{root}:val",
        "--scores",
        str(folder),
        "-o",
        str(out),
        "--threads",
        "1",
        *options,
    ]
    assert main(words) == 0
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def matrix(root: Path, predictions: dict[str, NDArray[np.uint8]]) -> list[list[int]]:
    counts = ConfusionMatrix(3)
    for name, labels in predictions.items():
        counts.add(labels, read(root / "labels" / "val" / f"{name}.png"))
    found: list[list[int]] = counts.matrix.tolist()
    return found


def test_label_maps_are_scored(root: Path, tmp_path: Path) -> None:
    predictions = predict(root, tmp_path / "maps")
    found = evaluate(root, tmp_path / "maps", tmp_path / "out", "--no-crf")
    assert found["network"]["matrix"] == matrix(root, predictions)
    assert "crf" not in found


@pytest.mark.parametrize("options", [(), ("--confidence", "0.9")])
def test_the_crf_does_what_refine_does(root: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    predictions = predict(root, tmp_path / "maps")
    words = ["refine", str(root / "images" / "val"), str(tmp_path / "maps"), "-o", str(tmp_path / "refined"), *options]
    assert main(words) == 0
    refined = {name: read(tmp_path / "refined" / f"{name}.png") for name in predictions}
    found = evaluate(root, tmp_path / "maps", tmp_path / "out", *options)
    assert found["network"]["matrix"] == matrix(root, predictions)
    assert found["crf"]["matrix"] == matrix(root, refined)


def test_maps_of_one_class_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    ones = {f"val{i}": np.ones((40, 48), np.uint8) for i in range(2)}
    for name, labels in ones.items():
        Image.fromarray(labels).save(tmp_path / "maps" / f"{name}.png")
    found = evaluate(root, tmp_path / "maps", tmp_path / "out")
    assert found["network"]["matrix"] == found["crf"]["matrix"] == matrix(root, ones)


def test_a_confidence_that_turns_labels_round_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(root, tmp_path / "maps")
    words = ["evaluate", "--data", f"folder:{root}:val", "--scores", str(tmp_path / "maps"), "--threads", "1"]
    assert main([*words, "--confidence", "0.2"]) == 1
    assert "confidence must be between 1 / 3 (the number of labels) and 1" in capsys.readouterr().err


def test_colours_and_other_ids_are_read_as_the_labels(root: Path, tmp_path: Path) -> None:
    predict(root, tmp_path / "maps")
    want = evaluate(root, tmp_path / "maps", tmp_path / "a", "--no-crf")["network"]
    palette = np.array(voc_palette(256), np.uint8).reshape(-1, 3)
    for folder in (root / "labels" / "val", tmp_path / "maps"):
        for path in folder.iterdir():
            Image.fromarray(palette[read(path)]).save(path)
    assert evaluate(root, tmp_path / "maps", tmp_path / "b", "--no-crf", "--label-colors", "voc")["network"] == want


def test_maps_that_do_not_fit_are_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(root, tmp_path / "maps")
    words = ["evaluate", "--data", f"folder:{root}:val", "--scores", str(tmp_path / "maps"), "--threads", "1"]
    path = tmp_path / "maps" / "val1.png"
    good = read(path)
    for wrong, message in (
        (
            np.where(good == 2, np.uint8(255), good),
            "val1.png: a predicted label map must have a class, 0..2, at every",
        ),
        (good[:-1], "val1.png: labels are 39 x 48"),
    ):
        Image.fromarray(wrong).save(path)
        assert main(words) == 1
        assert message in capsys.readouterr().err
    path.unlink()
    assert main(words) == 1
    assert "no label maps of 1 of 2 images: val1" in capsys.readouterr().err
    assert main([*words[:3], "--confidence", "0.9"]) == 2
    assert "--confidence is of use with --scores alone" in capsys.readouterr().err


def test_results_say_how_scores_were_read(root: Path, tmp_path: Path) -> None:
    predict(root, tmp_path / "maps")
    found = evaluate(root, tmp_path / "maps", tmp_path / "out", "--confidence", "0.9")
    assert found["settings"]["confidence"] == 0.9
    assert "- confidence: 0.9\n" in (tmp_path / "out" / "results.md").read_text()
