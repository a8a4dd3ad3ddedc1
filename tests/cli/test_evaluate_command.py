"""``deeplab-crf evaluate``: what is written, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_folder
from image_files import files
from model_samples import small_model
from PIL import Image
from samples import run_python

from deeplab_crf.cli import main
from deeplab_crf.core.pairwise import Bilateral
from deeplab_crf.core.presets import Preset, save_preset
from deeplab_crf.data.datasets import held_back, open_dataset
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.models import SegmentationPipeline, load_model, save_weights

pytestmark = pytest.mark.usefixtures("small_networks")

COUNT = 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", train=1, val=COUNT)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_weights(small_model(), path)
    return path


def evaluate(root: Path, *arguments: Any) -> int:
    return main(["evaluate", "--data", f"folder:{root}:val", "--threads", "1", *map(str, arguments)])


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_results_are_those_of_segment(
    root: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, preset = tmp_path / "out", tmp_path / "mine.toml"
    save_preset(Preset("mine", (Bilateral(9, 20, 3),), iterations=2), preset)
    assert evaluate(root, "--weights", weights, "--pad-to", 1, "--preset", preset, "-o", out, "--examples", 1) == 0
    pipeline = SegmentationPipeline(load_model(weights)[0], preset, pad_to=1)
    dataset, before, after = open_dataset("folder", root, "val"), ConfusionMatrix(3), ConfusionMatrix(3)
    for i in range(COUNT):
        (result,) = pipeline.predict(dataset[i].image)
        before.add(result.network_labels, dataset[i].labels)
        after.add(result.labels, dataset[i].labels)
    data = results(out)
    assert data["network"]["matrix"] == before.matrix.tolist()
    assert data["crf"]["matrix"] == after.matrix.tolist()
    assert data["crf"]["mean_iou"] == after.mean_iou
    assert data["settings"]["crf"] == str(preset)
    assert data["settings"]["model"] == "v2-compact-aspp"
    assert data["trimap"]["kind"] == "boundary"
    written = files(out)
    assert [name for name in written if not name.startswith("examples")] == ["results.json", "results.md", "trimap.png"]
    assert [name[:15] for name in written if name.startswith("examples")] == [
        "examples/best-1",
        "examples/worst-1"[:15],
    ]
    spoken = capsys.readouterr()
    assert f"mean IoU  {100 * before.mean_iou:>11.2f}".split() == spoken.out.split("\n")[4].split()[:3]
    assert f"{COUNT} images in " in spoken.out
    assert "v2-compact-aspp, 3 classes" in spoken.err


def test_saved_scores_give_the_same_without_the_network(root: Path, weights: Path, tmp_path: Path) -> None:
    """Within float16's rounding; and the default settings of the CRF are the network's, and pydensecrf's for scores."""
    saved = tmp_path / "scores"
    common = ("--trimap", "void", "--examples", 0)
    assert evaluate(root, "--weights", weights, "--save-scores", saved, "-o", tmp_path / "a", *common) == 0
    assert files(saved) == [f"val{i}.npz" for i in range(COUNT)]
    preset = ("--preset", "deeplab-v2-resnet101")
    assert evaluate(root, "--scores", saved, "-o", tmp_path / "b", *common, *preset) == 0
    a, b = results(tmp_path / "a"), results(tmp_path / "b")
    assert a["settings"]["crf"] == b["settings"]["crf"] == "deeplab-v2-resnet101"
    assert a["trimap"]["kind"] == b["trimap"]["kind"] == "void"
    for stage in ("network", "crf"):
        assert np.abs(np.array(a[stage]["matrix"]) - np.array(b[stage]["matrix"])).sum() <= 40  # of 5760 pixels
    assert evaluate(root, "--scores", saved, "-o", tmp_path / "c") == 0
    assert results(tmp_path / "c")["settings"]["crf"] == "pydensecrf"
    assert evaluate(root, "--scores", saved, "-o", tmp_path / "d", "--no-crf", "--workers", 2) == 0
    d = results(tmp_path / "d")
    assert d["settings"]["crf"] == "none"
    assert "crf" not in d
    assert d["network"] == b["network"]


def test_every_option_reaches_the_pipeline(root: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Spy(SegmentationPipeline):
        def __init__(self, network: Any, crf: Any, **options: Any) -> None:
            seen.update(options, crf=crf, scales=network.scales)
            super().__init__(network, crf, **options)

    monkeypatch.setattr("deeplab_crf.models.SegmentationPipeline", Spy)
    options = (
        "--multi-scale --preset crfasrnn --min-probability 0.25 --pad-to 9 --longer-side 20 --model v2-compact-aspp"
    )
    assert evaluate(root, "--weights", weights, *options.split()) == 0
    assert seen == {
        "crf": "crfasrnn",
        "min_probability": 0.25,
        "longer_side": 20,
        "pad_to": 9,
        "image_range": (0, 255),  # files are read so
        "scales": (1.0, 0.75, 0.5),
    }


def test_what_cannot_be_is_said_in_one_line(
    root: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = tmp_path / "two.safetensors"
    save_weights(small_model(classes=2), two)
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "val.txt").write_text("\n")
    out = tmp_path / "out"
    net = ("--weights", weights)
    cases = [
        (2, "--weights is of use with a network, not with --scores", [*net, "--scores", tmp_path]),
        (2, "--key is of use with --scores alone", [*net, "--key", "logits"]),
        (2, "--align-corners is of use with --scores alone", [*net, "--align-corners"]),
        (2, "--save-scores is of use with a network, not with --scores", ["--scores", tmp_path, "--save-scores", out]),
        (2, "--device", [*net, "--device", "gpu"]),
        (2, "preset must be one of", [*net, "--preset", "none"]),
        (1, "no scores (.npz or .npy) of 3 of 3 images: val0, val1, val2", ["--scores", tmp_path / "empty"]),
        (1, "the network must have the data set's 3 classes; got 2. Name one of that many", ["--weights", two]),
        (1, f"results cannot be written there: {weights} is no folder", [*net, "--save-scores", weights / "scores"]),
    ]
    for status, message, arguments in cases:
        assert evaluate(root, *arguments, "-o", out) == status, message
        spoken = capsys.readouterr().err
        assert message in spoken
        assert spoken.count("Error: ") == 1
    for status, message, data in (
        (2, "must be KIND:ROOT:SPLIT, such as camvid:data/camvid:val", "camvid"),
        (2, "must be KIND:ROOT:SPLIT", "cityscapes:here:val"),
        (1, "classes.txt: no such list", f"folder:{root}/nowhere:val"),
        (1, "the list is empty", f"camvid:{tmp_path / 'hollow'}:val"),
    ):
        assert main(["evaluate", "--data", data, "--weights", str(weights)]) == status, message
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_said_before_the_work(
    root: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deeplab_crf.cli.evaluate._run", lambda *_: pytest.fail("the work was begun"))
    out = weights / "new" / "results"
    assert evaluate(root, "--weights", weights, "-o", out) == 1
    assert f"{out}: results cannot be written there: {weights} is no folder" in capsys.readouterr().err


def test_a_bad_file_is_named(root: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(root / "labels" / "val" / "val1.png")
    assert evaluate(root, "--weights", weights, "--pad-to", 1, "-o", tmp_path / "out") == 1
    assert "val1.png: label values must be 0..2 or 255 (void); got 9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch_and_running_says_what_to_install(root: Path, weights: Path) -> None:
    arguments = ["evaluate", "--data", f"folder:{root}:val", "--weights", str(weights)]
    script = (
        "import sys; sys.modules['torch'] = None\nfrom deeplab_crf.cli import main\n"
        f"assert main(['evaluate', '--help']) == 0\nsys.exit(main({arguments!r}))"
    )
    done = run_python(script)
    assert done.returncode == 1
    assert "--trimap" in done.stdout
    assert 'pip install "deeplab-crf[torch]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_labels_that_measure_nothing_are_said_before_the_work(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 0/255 mask, and void alone: the mean IoU was 1.0 and NaN before, with status 0."""
    monkeypatch.setattr("deeplab_crf.cli.evaluate._run", lambda *_: pytest.fail("the work was begun"))
    for ids, message in (
        (
            [0, 255],
            "ground (0) is the only class with pixels in the labels, there is none of sky (1), thing (2). 255 means",
        ),
        ([255, 255], "the labels hold no pixel of any class, 255 (unlabelled) alone (val0.png, val1.png, val2.png)"),
    ):
        for path in (root / "labels" / "val").iterdir():
            Image.fromarray(np.resize(np.array(ids, np.uint8), (40, 48))).save(path)
        assert evaluate(root, "--weights", weights, "-o", tmp_path / "out") == 1
        spoken = capsys.readouterr().err
        assert f"{root / 'labels' / 'val'}: nothing can be measured on val: {message}" in spoken
        assert ("give --map-labels 255=1" in spoken) == (ids[0] == 0)
        assert spoken.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_absent_classes_are_named_and_names_are_shown_as_they_are(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is in no label, and would break the table and the list with its name."""
    (root / "classes.txt").write_text("ground\nsky\nthing\na|b `c` \x1b[31m _d_\n")
    path = tmp_path / "four.safetensors"
    save_weights(small_model(classes=4), path)
    assert evaluate(root, "--weights", path, "--pad-to", 1, "--no-crf", "-o", tmp_path / "out") == 0
    spoken = capsys.readouterr().out
    assert "Without a pixel in the labels, so with an IoU of 0 where predicted: a|b `c`  [31m _d_." in spoken
    assert "\x1b" not in spoken
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| a\\|b \\`c\\`  \\[31m \\_d\\_ | " in text
    assert "IoU of 0 where predicted: a\\|b \\`c\\`" in text
    assert {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")} == {3}
    data = results(tmp_path / "out")
    assert data["network"]["unlabelled"] == ["a|b `c` \x1b[31m _d_"]


def test_the_part_that_a_training_holds_back(root: Path, weights: Path, tmp_path: Path) -> None:
    part = ("--weights", weights, "--pad-to", 1, "--no-crf", "--val-fraction", 0.6, "--val-seed", 3)
    assert evaluate(root, *part, "-o", tmp_path / "out") == 0
    data = results(tmp_path / "out")
    assert [image["name"] for image in data["per_image"]] == held_back([f"val{i}" for i in range(COUNT)], 0.6, 3)
    assert data["settings"]["val_fraction"] == 0.6
    assert evaluate(root, "--weights", weights, "--val-seed", 3) == 2
