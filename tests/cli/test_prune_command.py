"""``deeplab-crf prune``: from a full backbone's file to one that `train --init` takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_samples import narrow as few_channels
from PIL import Image
from samples import photo

from deeplab_crf.cli import main
from deeplab_crf.models import build_model, load_weights, save_weights
from deeplab_crf.models import variants as table
from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.training import pruning as narrowing

NAME = "v1-narrow-largefov"


@pytest.fixture(autouse=True)
def _few_channels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A narrow variant of 2 channels, of a full backbone of 4."""
    monkeypatch.setattr(narrowing, "FULL_CHANNELS", 4)
    monkeypatch.setattr(table, "VARIANTS", {name: few_channels(name) for name in table.VARIANTS})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def full_network() -> DeepLab:
    torch.manual_seed(0)
    variant = few_channels("v1-vgg16-largefov")
    return DeepLab(replace(variant, backbone=replace(variant.backbone, channels=4)), 3).eval()


def folder(root: Path) -> Path:
    for i in range(3):
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(48, 64, seed=i)).save(root / "images" / f"{i}.png")
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(root / "labels" / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\n")
    (root / "train.txt").write_text("0\n1\n2\n")
    return root


def run(tmp_path: Path, *options: str) -> int:
    source = tmp_path / "full.safetensors"
    if not source.exists():
        save_weights(full_network(), source)
    data = ["--data", f"folder:{folder(tmp_path / 'data')}:train", "--crop", "41"]
    return main(["prune", str(source), str(tmp_path / "out.safetensors"), "--model", NAME, *data, *options])


def test_the_backbone_says_what_the_full_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    assert "Variance of each layer that is lost: " in capsys.readouterr().out
    thin = build_model(NAME, 2).eval()
    report = load_weights(thin, tmp_path / "out.safetensors")
    assert len(report.loaded) == 26
    assert all(name.startswith("classifier") for name in report.missing)
    image = torch.randn(2, 3, 41, 41, generator=torch.Generator().manual_seed(0)) * 50
    with torch.no_grad():
        wide, have = (
            each.backbone(image).flatten(2).transpose(1, 2).flatten(0, 1).double() for each in (full_network(), thin)
        )
    have = torch.cat([have, torch.ones_like(have[:, :1])], 1)
    fit = have @ torch.linalg.pinv(have) @ wide
    assert float((wide - fit).square().sum() / (wide - wide.mean(0)).square().sum()) < 0.5


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.safetensors").write_text("mine")
    assert run(tmp_path) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    assert run(tmp_path, "--overwrite") == 0


def test_a_file_without_the_backbone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(build_model("v2-compact-aspp", 3), tmp_path / "full.safetensors")
    assert run(tmp_path) == 1
    assert "must have a whole VGG-16 backbone" in capsys.readouterr().err
    save_weights(build_model(NAME, 3), tmp_path / "full.safetensors")
    assert run(tmp_path) == 1
    assert "(2, 3, 3, 3) for backbone.features.0.weight (4, 3, 3, 3)" in capsys.readouterr().err


def test_variants_that_are_not_narrow_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--model", "v2-compact-aspp") == 2
    assert "v2-narrow-aspp-l" in capsys.readouterr().err
