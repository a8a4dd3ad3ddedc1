"""Tables, results.json, results.md, the plot and the choice of examples, from counts made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_crf.data.datasets import Example
from deeplab_crf.evaluation.evaluate import Evaluation, ImageScore, Prediction
from deeplab_crf.evaluation.report import (
    Report,
    absent_lines,
    as_json,
    as_text,
    choose_examples,
    escaped,
    markdown,
    plot_trimap,
    score_rows,
    stage_seconds,
    trimap_rows,
    write_example,
    write_results,
)
from deeplab_crf.evaluation.trimap import TrimapScores, band_widths

CLASSES = ("ground", "sky", "thing", "ghost")
SETTINGS = {"data": "folder val (here)", "crf": "mine"}


def image_score(index: int, before: float, after: float | None) -> ImageScore:
    return ImageScore(index, f"i{index}", (before, after), (before, after), {"read": 0.25, "crf": 0.5})


def report(with_crf: bool = True) -> Report:
    """Four columns of ground beside four of sky; the network is wrong in two of them, the CRF in one; no ghost anywhere."""
    labels = np.repeat(np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8), 4, axis=0)
    widths = band_widths(labels, "boundary")
    found = []
    for column in (6, 5):
        scores = TrimapScores(4)
        scores.add((np.arange(8) >= column).astype(np.uint8)[None].repeat(4, axis=0), labels, widths)
        found.append(scores)
    images = [image_score(0, 0.75, 0.875 if with_crf else None)]
    return Report(Evaluation(found[0], found[1] if with_crf else None, images, 1.5), CLASSES, SETTINGS)


def test_what_no_number_speaks_of_is_said() -> None:
    """An image of void alone, and labels without a border: nothing was said of either before."""
    assert absent_lines(report()) == [
        "Without a pixel in the labels, so with an IoU of 0 where predicted: thing, ghost.",
        "Neither in the labels nor predicted (network), so not part of the mean: thing, ghost.",
        "Neither in the labels nor predicted (crf), so not part of the mean: thing, ghost.",
    ]
    labels = np.zeros((4, 8), np.uint8)
    scores = TrimapScores(2)
    scores.add(labels, labels, band_widths(labels, "boundary"))
    images = [image_score(0, 1.0, None), image_score(1, float("nan"), None)]
    assert absent_lines(Report(Evaluation(scores, None, images, 1.5), ("a\nb", "c"), SETTINGS)) == [
        "Without a pixel in the labels, so with an IoU of 0 where predicted: c.",
        "Neither in the labels nor predicted (network), so not part of the mean: c.",
        "Without a labelled pixel, so not part of any number: 1 of 2 images, i1.",
        "No pixel lies in a band: the labels have no borders between classes.",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("tv/monitor", "tv/monitor"), ("a|b", "a\\|b"), ("`x` *y* <z>", "\\`x\\` \\*y\\* \\<z\\>"), ("a\nb\x1b[1m", "a b \\[1m"),
     ("a_b _c_", "a_b \\_c\\_"), ("\\", "\\\\"), (None, "None"), ("straße 北", "straße 北")],
)  # fmt: skip
def test_markdown_shows_text_as_it_is(text: str | None, shown: str) -> None:
    assert escaped(text) == shown


def test_tables_in_per_cent() -> None:
    rows = score_rows(report())
    assert rows[0] == ["IoU", "network", "with CRF", "gain"]
    assert rows[1] == ["ground", "66.67", "80.00", "+13.33"]  # 4/6, 4/5
    assert rows[2] == ["sky", "50.00", "75.00", "+25.00"]  # 2/4, 3/4
    assert rows[4] == ["ghost", "-", "-", "-"]
    assert rows[5:] == [
        ["mean IoU", "58.33", "77.50", "+19.17"],
        ["pixel accuracy", "75.00", "87.50", "+12.50"],
        ["class accuracy", "75.00", "87.50", "+12.50"],
    ]
    assert trimap_rows(report())[1] == ["1", "25.00", "25.00", "+0.00"]  # one column a side: ground right, sky wrong
    assert trimap_rows(report())[2] == ["2", "25.00", "58.33", "+33.33"]
    assert score_rows(report(False))[0] == ["IoU", "network"]
    assert score_rows(report(False))[5] == ["mean IoU", "58.33"]
    lines = as_text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_json_is_complete_and_has_no_nan(tmp_path: Path) -> None:
    write_results(report(), tmp_path)
    text = (tmp_path / "results.json").read_text()
    data = json.loads(text, parse_constant=pytest.fail)
    assert data == as_json(report())
    assert data["settings"] == SETTINGS
    assert data["network"]["matrix"] == [[16, 0, 0, 0], [8, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert data["crf"]["iou"] == {"ground": 0.8, "sky": 0.75, "thing": None, "ghost": None}
    assert data["crf"]["absent"] == ["thing", "ghost"]
    assert data["trimap"]["widths"] == list(range(1, 41))
    assert data["trimap"]["network"]["pixel_accuracy"][:2] == [0.5, 0.5]
    assert data["per_image"] == [{"name": "i0", "pixel_accuracy": [0.75, 0.875], "mean_iou": [0.75, 0.875]}]
    assert data["stage_seconds"] == {"read": 0.25, "crf": 0.5}
    assert "crf" not in as_json(report(False))


def test_markdown_says_what_was_left_out() -> None:
    text = markdown(report())
    assert text.startswith("# folder val (here): 1 image\n")
    assert "| mean IoU | 58.33 | 77.50 | +19.17 |" in text
    assert "predicted (network), so not part of the mean: thing, ghost." in text
    assert "borders between classes" in text
    assert "1.5 s (read 250 ms an image, crf 500 ms an image)" in text


def test_seconds_add_up() -> None:
    assert stage_seconds([image_score(i, 0.5, 0.5) for i in range(3)]) == {"read": 0.75, "crf": 1.5}


@pytest.mark.parametrize("with_crf", [True, False])
def test_the_plot(tmp_path: Path, with_crf: bool) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    plot_trimap(report(with_crf), tmp_path / "trimap.png")
    with Image.open(tmp_path / "trimap.png") as image:
        assert image.size[0] > 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "deeplab-crf\[bench\]"'):
        plot_trimap(report(), tmp_path / "trimap.png")


def test_examples_are_the_extremes() -> None:
    gains = [0.02, -0.03, 0.05, 0.0, float("nan")]
    images = [image_score(i, 0.5, 0.5 + gain) for i, gain in enumerate(gains)]
    chosen = {stem: image.index for stem, image in choose_examples(images, 2).items()}
    assert chosen == {"worst-1-i1": 1, "worst-2-i3": 3, "best-1-i2": 2, "best-2-i0": 0}
    assert {image.index for image in choose_examples(images[:1], 2).values()} == {0}
    assert choose_examples(images, 0) == {}
    alone = [image_score(i, accuracy, None) for i, accuracy in enumerate((0.4, 0.9, 0.1))]
    assert {stem: image.index for stem, image in choose_examples(alone, 1).items()} == {"worst-1-i2": 2, "best-1-i1": 1}


def test_an_example_shows_void_black(tmp_path: Path) -> None:
    labels = np.full((20, 30), 2, np.uint8)
    labels[:, :10] = 255
    example = Example("a", np.full((20, 30, 3), 200, np.uint8), labels)
    write_example(Prediction(example, labels * 0, labels * 0 + 1, {}), CLASSES, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 4 * 30
    assert (pixels == 0).all(axis=2).sum() >= 200


def test_the_report_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import deeplab_crf.evaluation.report"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
