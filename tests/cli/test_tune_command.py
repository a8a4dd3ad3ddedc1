"""``deeplab-crf tune``: options, files, what is said, and what other commands make of its preset."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import narrow, small_model
from PIL import Image
from samples import run_python
from tune_samples import SIZE, opened, write_tuning

from deeplab_crf.cli import main
from deeplab_crf.core.presets import load_preset
from deeplab_crf.data.datasets import held_back
from deeplab_crf.data.results import RECORDS
from deeplab_crf.models import save_weights
from deeplab_crf.models import variants as table

SMALL = (
    *("--bilateral-weight", "2,4", "--bilateral-sxy", "12", "--bilateral-srgb", "5:5:10"),
    *("--gaussian-sxy", "2", "--iterations", "3"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuning(tmp_path_factory.mktemp("command"), noise=1.5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tune(root: Path, out: Path, *arguments: Any, scores: bool = True) -> int:
    source = ("--scores", root / "scores") if scores else ()
    words = ("tune", "--data", f"folder:{root}:train", *source, "-o", out, "--threads", 1, *arguments)
    return main([str(word) for word in words])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_search_then_gradient_then_refine(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, learned = tmp_path / "found", tmp_path / "learned"
    assert tune(root, found, *SMALL, "--rounds", 1) == 0
    said = capsys.readouterr()
    tried = rows(found / "table.csv")
    assert {float(row["bilateral_srgb"]) for row in tried if row["round"] == "0"} == {5, 10}
    assert {float(row["gaussian_sxy"]) for row in tried} == {2}
    assert {int(row["iterations"]) for row in tried} == {3}
    best = max(tried, key=lambda row: float(row["mean_iou"]))
    assert f"with the CRF {float(best['mean_iou']):.4f}" in said.out
    assert f"best of {len(tried)} settings: gaussian_weight 3, gaussian_sxy 2, bilateral_weight" in said.out
    assert f"ms of CPU time an image and setting, {4 * len(tried)} of them" in said.out
    assert "grid" in said.err
    preset = load_preset(found / "preset.toml")
    assert preset.name == "found"
    assert preset.kernels[1].weight == float(best["bilateral_weight"])
    assert preset.normalization == "after"
    assert "on 4 images of folder train" in preset.description

    assert (
        tune(root, learned, "--method", "gradient", "--start", found / "preset.toml", "--epochs", 2, "--name", "g") == 0
    )
    said = capsys.readouterr()
    assert "epoch 2: loss " in said.out
    epochs = rows(learned / "epochs.csv")
    assert [row["epoch"] for row in epochs] == ["0", "1", "2"]
    assert epochs[0]["mean_iou"] == best["mean_iou"]
    assert load_preset(learned / "preset.toml").name == "g"

    image, scores = root / "images" / "train" / "train0.png", root / "scores" / "train0.npz"
    with np.load(scores) as stored:
        np.save(tmp_path / "train0.npy", stored["scores"].astype(np.float32))
    arguments = [image, tmp_path / "train0.npy", "-o", tmp_path / "x.png", "--preset", learned / "preset.toml"]
    assert main(["refine", "--scores-are", "logits", "--align-corners", *map(str, arguments)]) == 0


def test_run_again_computes_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(root, tmp_path / "out", *SMALL, "--rounds", 0) == 0
    before = (tmp_path / "out" / "table.csv").read_bytes()
    capsys.readouterr()
    assert tune(root, tmp_path / "out", *SMALL, "--rounds", 0) == 0
    assert "CPU time" not in capsys.readouterr().out
    assert (tmp_path / "out" / "table.csv").read_bytes() == before
    assert tune(root, tmp_path / "out", *SMALL, "--rounds", 0, "--images", 2) == 1
    assert "holds trials of another search: images was" in capsys.readouterr().err
    assert tune(root, tmp_path / "out", *SMALL, "--rounds", 0, "--images", 2, "--overwrite") == 0


def test_the_trimap_measure_and_images(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("boundary", "void"):
        arguments = (*SMALL, "--rounds", 0, "--images", 3, "--measure", "trimap:2", "--trimap", kind)
        assert tune(root, tmp_path / kind, *arguments) == 0
        assert f"mean IoU within 2 pixels ({kind}): network alone" in capsys.readouterr().out
    boundary, void = (rows(tmp_path / kind / "table.csv")[0]["mean_iou"] for kind in ("boundary", "void"))
    assert boundary != void


def test_weights_instead_of_scores(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "VARIANTS", {name: narrow(name) for name in table.VARIANTS})
    monkeypatch.setattr("deeplab_crf.models.weights.load.VARIANTS", table.VARIANTS)
    weights = tmp_path / "net.safetensors"
    save_weights(small_model("v2-compact-aspp", 3), weights)
    arguments = ("--weights", weights, "--pad-to", 1, "--images", 2, *SMALL, "--rounds", 0)
    assert tune(root, tmp_path / "out", *arguments, scores=False) == 0
    (folder,) = (tmp_path / "out").glob("scores-*")
    assert sorted(path.name for path in folder.iterdir()) == [RECORDS, "train0.npz", "train3.npz"]
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    first = (tmp_path / "out" / "table.csv").read_bytes()
    assert tune(root, tmp_path / "out", *arguments, scores=False) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert (tmp_path / "out" / "table.csv").read_bytes() == first
    capsys.readouterr()
    wrong = tmp_path / "wrong.safetensors"
    save_weights(small_model("v2-compact-aspp", 5), wrong)
    assert tune(root, tmp_path / "bad", "--weights", wrong, "--pad-to", 1, *SMALL, scores=False) == 1
    assert (
        "wrong.safetensors: the network must have the data set's 3 classes; got 5. Name one" in capsys.readouterr().err
    )


WRONG = {
    "a model beside scores": (
        ("--model", "v2-compact-aspp"),
        True,
        "--model is of use with a network, not with --scores",
    ),
    "a gradient's option": (("--epochs", 3), True, "--epochs is of no use with --method search"),
    "a search's option": (
        ("--method", "gradient", "--start", "crfasrnn", "--bilateral-sxy", 3),
        True,
        "--bilateral-sxy is of no use with --method gradient",
    ),
    "no start": (("--method", "gradient"), True, "--method gradient needs --start"),
    "an unknown start": (("--method", "gradient", "--start", "mine"), True, "preset must be one of"),
    "a range downwards": (("--bilateral-sxy", "9:1:3"), True, "'9:1:3' must go from FIRST up to LAST"),
    "a range without steps": (("--bilateral-sxy", "3:0:9"), True, "'3:0:9' is neither numbers"),
    "an endless range": (("--bilateral-sxy", "3:1:inf"), True, "'3:1:inf' is neither numbers"),
    "a huge range": (("--bilateral-sxy", "3:1e-9:9"), True, "in at most 1000 steps"),
    "no range": (("--bilateral-sxy", "1:2"), True, "'1:2' is neither numbers"),
    "no numbers": (("--bilateral-srgb", "wide"), True, "'wide' is neither numbers"),
    "an unknown measure": (("--measure", "accuracy"), True, "'accuracy' is neither miou nor trimap:WIDTH"),
    "a measure without width": (("--measure", "trimap:"), True, "'trimap:' is neither miou nor trimap:WIDTH"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, scores, message = WRONG[case]
    assert tune(root, tmp_path / "out", *arguments, scores=scores) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


BAD = {
    "a width of zero": (("--bilateral-sxy", "0,3"), "bilateral_sxy must be positive and finite; got 0"),
    "a negative weight": (("--bilateral-weight", "-1"), "bilateral_weight must be finite and >= 0; got -1"),
    "half an iteration": (("--iterations", "2.5"), "iterations must be a whole number >= 1; got 2.5"),
    "more images than there are": (("--images", 9), "images must be a whole number in [1, 4]"),
    "a band too wide": (("--measure", "trimap:99"), "the trimap's width must be a whole number in [1, 40]; got 99"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD[case]
    assert tune(root, tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_and_wrong_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tuning(tmp_path / "data", count=2, classes=4)
    assert tune(root, tmp_path / "out", *SMALL) == 1
    assert "train0.npz: scores must have the 3 classes of the data set; got 4" in capsys.readouterr().err
    (root / "scores" / "train1.npz").unlink()
    assert tune(root, tmp_path / "out", *SMALL) == 1
    assert "train1.npz: no such file; scores of 1 of 2 images are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (root / "train.txt").write_text("\n")
    assert tune(root, tmp_path / "out", *SMALL) == 1
    assert "train.txt: the list is empty" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tuning(tmp_path / "data", count=3)
    opened(root).items[2].image.write_bytes(b"nonsense")
    assert tune(root, tmp_path / "out", *SMALL) == 1
    assert "train2.png: cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "out" / "table.csv").exists()


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "deeplab_crf",
        "tune",
        "--data",
        f"folder:{root}:train",
        "--scores",
        root / "scores",
    ]
    options = ["-o", out, "--bilateral-sxy", "3:0.01:9", "--rounds", "0", "--threads", "2"]
    process = subprocess.Popen(
        [str(word) for word in (*command, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        end = time.monotonic() + 120
        while not (out / "table.csv").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    kept = rows(out / "table.csv")
    assert kept
    sxy = kept[0]["bilateral_sxy"]
    grid = ["--bilateral-sxy", sxy, "--bilateral-srgb", kept[0]["bilateral_srgb"], "--rounds", 0]
    before = (out / "table.csv").read_bytes()
    assert tune(root, out, *grid) == 0
    assert (out / "table.csv").read_bytes() == before


def test_help_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None\nfrom deeplab_crf.cli import main\nassert main(['tune', '--help']) == 0"
    done = run_python(script)
    assert done.returncode == 0, done.stderr


def test_without_torch_it_says_what_to_install(root: Path, tmp_path: Path) -> None:
    words = ["tune", "--data", f"folder:{root}:train", "--scores", str(root / "scores"), "-o", str(tmp_path / "out")]
    done = run_python(
        f"import sys; sys.modules['torch'] = None\nfrom deeplab_crf.cli import main\nsys.exit(main({words!r}))"
    )
    assert done.returncode == 1
    assert 'pip install "deeplab-crf[torch]"' in done.stderr


def test_labels_that_measure_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tuning(tmp_path / "data", count=2)
    for path in (root / "labels" / "train").iterdir():
        Image.fromarray(np.resize(np.array([0, 255], np.uint8), SIZE)).save(path)
    assert tune(root, tmp_path / "out", *SMALL) == 1
    assert (
        "nothing can be measured on these images: ground (0) is the only class with pixels" in capsys.readouterr().err
    )
    for path in (root / "labels" / "train").iterdir():  # two classes, but none of them near an edge
        Image.fromarray(
            np.where(np.arange(48) < 4, 0, np.where(np.arange(48) < 44, 255, 1)).astype(np.uint8)[None].repeat(40, 0)
        ).save(path)
    assert tune(root, tmp_path / "out", *SMALL, "--measure", "trimap:1") == 1
    assert "labels must hold pixels to score; got none in 2 images" in capsys.readouterr().err
    assert not (tmp_path / "out" / "preset.toml").exists()


def test_the_part_that_a_training_holds_back(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tune(root, out, *SMALL, "--rounds", 0, "--val-fraction", 0.5) == 0
    held = held_back([f"train{i}" for i in range(4)], 0.5, 0)
    assert json.loads((out / "setup.json").read_text())["images"] == held


def test_a_gradient_run_that_was_broken_off_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --skip-existing too: the preset of a run that has not ended is not a result."""
    from deeplab_crf.tuning.gradient import GradientTuner

    step, steps = GradientTuner._step, []

    def interrupted(tuner: GradientTuner, batch: list[int]) -> Any:
        steps.append(batch)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(tuner, batch)

    common = ("--method", "gradient", "--start", "crfasrnn", "--epochs", 3, "--batch", 1, "--name", "mine")
    assert tune(root, tmp_path / "whole", *common) == 0
    monkeypatch.setattr(GradientTuner, "_step", interrupted)
    out = tmp_path / "out"
    assert tune(root, out, *common) == 130
    monkeypatch.undo()
    assert (out / "preset.toml").exists()
    assert (out / "checkpoint.pt").exists()
    capsys.readouterr()
    assert tune(root, out, *common, "--skip-existing") == 0
    assert "went on after epoch 1 of an earlier run" in capsys.readouterr().out
    for name in ("epochs.csv", "preset.toml"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (out / "checkpoint.pt").exists()
