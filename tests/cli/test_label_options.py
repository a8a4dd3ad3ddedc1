"""``--map-labels`` and ``--label-colors``: the same in refine, evaluate, tune and train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_files import read
from PIL import Image
from samples import photo

from deeplab_crf.cli import main
from deeplab_crf.data.classes import voc_palette

COLOURS = np.array(voc_palette(256), np.uint8).reshape(-1, 3)
ONE_BASED = "0=255,1..3=0..2"


def recode(root: Path, split: str, how: str) -> None:
    """Rewrite the label images of a split: as colours, or with ids from 1 and 0 for void."""
    for path in (root / "labels" / split).iterdir():
        ids = read(path)
        recoded = COLOURS[ids] if how == "colours" else np.where(ids == 255, 0, ids + 1).astype(np.uint8)
        Image.fromarray(recoded).save(path)


OPTIONS = [("colours", ("--label-colors", "voc")), ("ids", ("--map-labels", ONE_BASED))]


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """An image, and a mask as ids, as 0 and 255 and as colours."""
    Image.fromarray(photo(24, 32)).save(tmp_path / "image.png")
    ids = (np.arange(24)[:, None] + np.arange(32) > 28).astype(np.uint8)
    for name, values in (("ids", ids), ("mask", 255 * ids), ("colours", COLOURS[ids])):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "mask.npy", 255 * ids)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask.png", ("--map-labels", "255=1")),
        ("mask.npy", ("--map-labels", "255=1")),
        ("colours.png", ("--label-colors", "voc")),
    ],
)
def test_refine(masked: Path, name: str, options: tuple[str, ...]) -> None:
    image = str(masked / "image.png")
    assert main(["refine", image, str(masked / "ids.png"), "-o", str(masked / "a.png")]) == 0
    assert main(["refine", image, str(masked / name), "-o", str(masked / "b.png"), *options]) == 0
    np.testing.assert_array_equal(read(masked / "a.png"), read(masked / "b.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--map-labels", "255"), "'--map-labels': map_labels must be OLD=NEW pairs"),
        (("--map-labels", "1=70000"), "'--map-labels': map_labels must replace whole numbers by ids in 0..65535"),
        (("--label-colors", "nowhere.txt"), "--label-colors: nowhere.txt: no such table"),
    ],
)
def test_options_that_make_no_sense(
    masked: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(masked / "image.png"), str(masked / "ids.png"), "-o", str(masked / "a.png"), *options]
    assert main(["refine", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("how", "options"), OPTIONS)
def test_tune(tmp_path: Path, how: str, options: tuple[str, ...]) -> None:
    pytest.importorskip("torch", reason="tune needs torch")
    from tune_samples import write_tuning

    root = write_tuning(tmp_path / "data", count=2)
    words = [
        "tune",
        "--data",
        f"folder:{root}:train",
        "--scores",
        str(root / "scores"),
        "--threads",
        "1",
        "--rounds",
        "0",
    ]
    words += ["--bilateral-weight", "2", "--bilateral-sxy", "12", "--bilateral-srgb", "5", "--iterations", "1"]
    assert main([*words, "-o", str(tmp_path / "a")]) == 0
    recode(root, "train", how)
    assert main([*words, "-o", str(tmp_path / "b"), *options]) == 0
    assert (tmp_path / "a" / "table.csv").read_text() == (tmp_path / "b" / "table.csv").read_text()
    asked = json.loads((tmp_path / "b" / "setup.json").read_text())
    assert asked.pop("labels").startswith("colours of voc" if how == "colours" else "0=255, 1=0")
    plain = json.loads((tmp_path / "a" / "setup.json").read_text())
    assert {name for name in plain if plain[name] != asked[name]} == {"digest of images and labels"}


@pytest.mark.parametrize(("how", "options"), OPTIONS)
def test_evaluate(tmp_path: Path, how: str, options: tuple[str, ...]) -> None:
    pytest.importorskip("torch", reason="evaluate needs torch")
    from tune_samples import write_tuning

    root = write_tuning(tmp_path / "data", count=2)
    words = [
        "evaluate",
        "--data",
        f"folder:{root}:train",
        "--scores",
        str(root / "scores"),
        "--no-crf",
        "--threads",
        "1",
    ]
    assert main([*words, "-o", str(tmp_path / "a")]) == 0
    recode(root, "train", how)
    assert main([*words, "-o", str(tmp_path / "b"), *options]) == 0
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["network"] == b["network"]
    assert "labels" in b["settings"]


@pytest.mark.parametrize(("how", "options"), OPTIONS)
def test_train(tmp_path: Path, how: str, options: tuple[str, ...]) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    load_file = pytest.importorskip("safetensors.torch", reason="training needs safetensors").load_file
    from dataset_files import write_folder
    from model_samples import narrow_variants
    from training_runs import COMPACT

    root = write_folder(tmp_path / "data", train=2, val=1)
    words = ["train", "--model", COMPACT, "--data", "folder", "--root", str(root), "--iterations", "1", "--batch", "2"]
    words += ["--crop", "33", "--workers", "0", "--validate-every", "0"]
    with narrow_variants():
        assert main([*words, "-o", str(tmp_path / "a")]) == 0
        recode(root, "train", how)
        recode(root, "val", how)
        assert main([*words, "-o", str(tmp_path / "b"), *options]) == 0
        # resuming with other options is refused
        assert main(["train", "-o", str(tmp_path / "b"), "--resume", "--map-labels", "7=1", "--label-colors", ""]) == 1
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in "ab")
    assert all(bool((first[key] == second[key]).all()) for key in first)
