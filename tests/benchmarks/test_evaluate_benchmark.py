"""The evaluation benchmark: the peer's loop against our scores, wrong labels caught, table and files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import write_folder

from benchmarks import evaluate
from deeplab_crf.pydensecrf import densecrf

PRESETS = "pydensecrf,deeplab-v2-resnet101"


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def drop_in_as_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls of the drop-in: pydensecrf2 need not be installed."""
    monkeypatch.setattr(evaluate, "peer_module", lambda: densecrf)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    root = write_folder(tmp_path / "data", train=1, val=3)
    options = ["--data", f"folder:{root}:val", "--threads", "1", "--images", "2"]
    return [*options, "--json", str(tmp_path / "e.json"), "--markdown", str(tmp_path / "e.md"), "--presets", PRESETS]


def test_table_and_files(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(arguments) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "e.md").read_text() in text
    races = json.loads((tmp_path / "e.json").read_text())["races"]
    assert [(race["loop"], race["preset"]) for race in races] == [
        (loop, preset) for preset in PRESETS.split(",") for loop in (evaluate.CRF_ALONE, evaluate.WHOLE)
    ]
    for race in races:
        assert race["agreement"] == 1
        assert race["ours_iou"] == race["peer_iou"]
        assert len(race["ours"]) == len(race["peer"]) == 1
        assert f"| {race['loop']}, {race['preset']} |" in text


def test_labels_that_differ_fail(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "peer_labels", lambda preset, image, logits: np.zeros(image.shape[:2], np.uint8))
    assert evaluate.main(arguments) == 1


def test_the_speedup_is_that_of_all_turns() -> None:
    race = evaluate.Race("a", "b", 1.0, peer=[6.0, 8.0, 4.0], ours=[1.0, 1.0, 2.0])
    assert race.speedup == 18 / 4
    assert race.middle_speedup == 6


def test_without_the_peer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pydensecrf", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(SystemExit, match="pip install pydensecrf2"):
        evaluate.peer_module()


@pytest.mark.parametrize("wrong", [["--images", "0"], ["--data", "nothing"], ["--presets", "nothing"]])
def test_bad_arguments(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(wrong)
    assert f"argument {wrong[0]}" in capsys.readouterr().err
