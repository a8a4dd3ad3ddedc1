"""Results of other data, weights or settings are never taken for those of this run: evaluate, tune, convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import write_folder
from model_samples import small_model
from PIL import Image
from tune_samples import write_tuning

from deeplab_crf.cli import main
from deeplab_crf.core.pairwise import Bilateral
from deeplab_crf.core.presets import Preset, save_preset
from deeplab_crf.data.results import RECORDS
from deeplab_crf.models import load_model, save_weights

pytestmark = pytest.mark.usefixtures("small_networks")

GRID = (
    *("--bilateral-weight", 2, "--bilateral-sxy", "6,12", "--bilateral-srgb", "5,10"),
    *("--gaussian-sxy", 2, "--iterations", 2, "--rounds", 0),
)
Output = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", train=1, val=3)


def weights_file(path: Path, shift: float = 0.0) -> Path:
    network = small_model()
    with torch.no_grad():
        network.classifier.branches[0].bias[1] += shift
    save_weights(network, path)
    return path


def evaluate(root: Path, *arguments: Any) -> int:
    words = ("evaluate", "--data", f"folder:{root}:val", "--threads", 1, "--examples", 1, *arguments)
    return main([str(word) for word in words])


def tune(root: Path, out: Path, *arguments: Any) -> int:
    words = ("tune", "--data", f"folder:{root}:train", "-o", out, "--threads", 1, *arguments)
    return main([str(word) for word in words])


def modified(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def repaint(path: Path) -> None:
    """Change one pixel."""
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 1 - pixels[0, 0].clip(0, 1)
    Image.fromarray(pixels).save(path)


# ---------------------------------------------------------------- evaluate


def test_an_evaluation_is_left_as_it_is_while_it_is_true(data: Path, tmp_path: Path, capsys: Output) -> None:
    weights, out = weights_file(tmp_path / "net.safetensors"), tmp_path / "out"
    assert evaluate(data, "--weights", weights, "-o", out) == 0
    before = modified(out)
    assert {"results.json", "results.md", RECORDS} <= before.keys()
    capsys.readouterr()
    assert evaluate(data, "--weights", weights.rename(tmp_path / "moved.safetensors"), "--workers", 2, "-o", out) == 0
    assert capsys.readouterr().out == f"{out} is up to date; --overwrite makes it anew\n"
    assert modified(out) == before


@pytest.mark.parametrize(
    "change", ["weights", "crf", "preset", "trimap", "examples", "image", "labels", "result", "example"]
)
def test_an_evaluation_of_something_else_is_refused(
    change: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    weights, out, preset = weights_file(tmp_path / "net.safetensors"), tmp_path / "out", tmp_path / "mine.toml"
    save_preset(Preset("mine", (Bilateral(9.0, 30.0, 5.0),), iterations=1), preset)
    assert evaluate(data, "--weights", weights, "--preset", preset, "-o", out) == 0
    options: list[Any] = ["--weights", weights, "--preset", preset]
    if change == "weights":
        weights_file(weights, shift=1.0)
    elif change == "crf":
        options = ["--weights", weights, "--no-crf"]
    elif change == "preset":
        save_preset(Preset("mine", (Bilateral(9.0, 30.0, 5.0),), iterations=2), preset)
    elif change in ("trimap", "examples"):
        options += ["--trimap", "void"] if change == "trimap" else ["--examples", 0]
    elif change in ("image", "labels"):
        repaint(data / f"{change.rstrip('s')}s" / "val" / "val1.png")
    elif change == "result":
        (out / "results.md").write_text("edited")
    else:
        next((out / "examples").iterdir()).unlink()
    before = modified(out)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("deeplab_crf.cli.evaluate._run", lambda *_: pytest.fail("the work was begun"))
        assert evaluate(data, *options, "-o", out) == 1
        assert f"Error: {out} holds results of other data, weights or settings" in capsys.readouterr().err
        assert modified(out) == before
        assert evaluate(data, *options, "-o", out, "--skip-existing") == 0
        assert capsys.readouterr().out == f"{out} has results, skipped\n"
    (out / "examples" / "best-9-of-before.png").write_bytes(b"of an earlier run")
    (out / "examples" / "mine.png").write_bytes(b"the user's own")
    assert evaluate(data, *options, "-o", out, "--overwrite") == 0
    examples = {path.name for path in (out / "examples").iterdir()}
    assert "mine.png" in examples
    assert len(examples) == (1 if change == "examples" else 3), "nothing of the earlier run stays"
    assert evaluate(data, *options, "-o", out) == 0
    assert "is up to date" in capsys.readouterr().out


def test_an_evaluation_that_was_interrupted_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    weights, out = weights_file(tmp_path / "net.safetensors"), tmp_path / "out"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deeplab_crf.evaluation.report.write_results", interrupted)
        assert evaluate(data, "--weights", weights, "-o", out) == 130
    assert list((out / "examples").iterdir())
    assert evaluate(data, "--weights", weights, "-o", out) == 0
    assert evaluate(data, "--weights", weights, "-o", out) == 0
    assert "is up to date" in capsys.readouterr().out


def test_results_of_unknown_origin_are_refused(data: Path, tmp_path: Path, capsys: Output) -> None:
    weights, out = weights_file(tmp_path / "net.safetensors"), tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("{}")
    assert evaluate(data, "--weights", weights, "-o", out) == 1
    assert "results.json exists already, of unknown origin: no record in" in capsys.readouterr().err
    assert evaluate(data, "--weights", weights, "-o", out, "--overwrite") == 0
    assert json.loads((out / "results.json").read_text())["images"] == 3


def test_scores_of_two_networks_are_told_apart(data: Path, tmp_path: Path, capsys: Output) -> None:
    one, two = weights_file(tmp_path / "one.safetensors"), weights_file(tmp_path / "two.safetensors", shift=1.0)
    saved = tmp_path / "scores"
    assert evaluate(data, "--weights", one, "--save-scores", saved) == 0
    assert evaluate(data, "--scores", saved) == 0
    (data / "val.txt").write_text("val2\n")
    assert evaluate(data, "--weights", two, "--save-scores", saved) == 0
    (data / "val.txt").unlink()
    capsys.readouterr()
    assert evaluate(data, "--scores", saved) == 1
    assert (
        "val0.npz and val2.npz were made with different weights or settings (1 of 3 differ" in capsys.readouterr().err
    )
    assert evaluate(data, "--weights", two, "--save-scores", saved) == 0
    assert evaluate(data, "--scores", saved) == 0
    (saved / RECORDS).unlink()
    assert evaluate(data, "--weights", two, "--save-scores", saved) == 1
    assert "val0.npz and 2 more exist already, of unknown origin" in capsys.readouterr().err


# ---------------------------------------------------------------- tune


def test_a_search_knows_its_data(tmp_path: Path, capsys: Output) -> None:
    root, out = write_tuning(tmp_path / "data", noise=1.5, count=2), tmp_path / "out"
    scores = ("--scores", root / "scores")
    assert tune(root, out, *scores, *GRID) == 0
    before = modified(out)
    repaint(root / "labels" / "train" / "train1.png")
    capsys.readouterr()
    assert tune(root, out, *scores, *GRID) == 1
    error = capsys.readouterr().err
    assert "holds trials of another search: digest of images and labels was" in error
    assert "Choose another folder, or --overwrite" in error
    assert modified(out) == before
    assert tune(root, out, *scores, *GRID, "--skip-existing") == 0
    assert f"{out / 'preset.toml'} exists, skipped" in capsys.readouterr().out
    assert tune(root, out, *scores, *GRID, "--overwrite") == 0


def test_gradient_descent_is_skipped_while_it_is_true(tmp_path: Path, capsys: Output) -> None:
    root, out = write_tuning(tmp_path / "data", noise=1.5, count=2), tmp_path / "out"
    options = ("--scores", root / "scores", "--method", "gradient", "--start", "crfasrnn", "--epochs", 1)
    assert tune(root, out, *options) == 0
    before = modified(out)
    capsys.readouterr()
    assert tune(root, out, *options) == 0
    assert capsys.readouterr().out == f"{out / 'preset.toml'} is up to date; --overwrite begins afresh\n"
    assert tune(root, out, *options, "--rate", 0.01) == 1
    assert "preset.toml is there already; choose another folder, or --overwrite" in capsys.readouterr().err
    assert modified(out) == before
    repaint(root / "images" / "train" / "train1.png")
    assert tune(root, out, *options) == 1
    assert tune(root, out, *options, "--overwrite") == 0


def test_search_and_gradient_descent_leave_nothing_of_each_other(tmp_path: Path, capsys: Output) -> None:
    root, out = write_tuning(tmp_path / "data", noise=1.5, count=2), tmp_path / "out"
    scores = ("--scores", root / "scores")
    gradient = (*scores, "--method", "gradient", "--start", "crfasrnn", "--epochs", 1)
    assert tune(root, out, *scores, *GRID) == 0
    searched = sorted(set(modified(out)))
    (out / "preset.toml").unlink()
    assert tune(root, out, *gradient) == 1
    assert "table.csv is there already" in capsys.readouterr().err
    assert tune(root, out, *gradient, "--overwrite") == 0
    assert sorted(modified(out)) == [RECORDS, "epochs.csv", "preset.toml"]
    assert tune(root, out, *scores, *GRID) == 1
    assert tune(root, out, *scores, *GRID, "--overwrite") == 0
    assert sorted(name for name in modified(out) if name != RECORDS) == searched


def test_scores_that_tune_keeps_are_those_of_the_images(tmp_path: Path) -> None:
    root, out = write_tuning(tmp_path / "data", count=2), tmp_path / "out"
    options = ("--weights", weights_file(tmp_path / "net.safetensors"), "--pad-to", 1, *GRID)
    assert tune(root, out, *options) == 0
    (folder,) = out.glob("scores-*")
    before = modified(folder)
    repaint(root / "images" / "train" / "train1.png")
    assert tune(root, out, *options, "--overwrite") == 0
    after = modified(folder)
    assert after["train0.npz"] == before["train0.npz"]
    assert after["train1.npz"] != before["train1.npz"]


# ---------------------------------------------------------------- convert


def test_convert_refuses_a_file_that_exists(tmp_path: Path, capsys: Output) -> None:
    source, out = weights_file(tmp_path / "net.safetensors"), tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out)]) == 0
    before = modified(tmp_path)
    capsys.readouterr()
    assert main(["convert", str(source), str(out), "--half"]) == 2
    assert f"{out} exists; --overwrite replaces it, --skip-existing keeps it" in capsys.readouterr().err
    assert main(["convert", str(source), str(out), "--half", "--skip-existing"]) == 0
    assert capsys.readouterr().out == f"{out} exists, skipped\n"
    assert modified(tmp_path) == before
    assert main(["convert", str(source), str(out), "--half", "--overwrite"]) == 0
    assert load_model(out)[0].variant.name == "v2-compact-aspp"
