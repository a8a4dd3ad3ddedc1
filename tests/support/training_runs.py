"""Small trainings for tests: narrow networks, crops of some dozen pixels, a few iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deeplab_crf.training.settings import TrainSettings
from deeplab_crf.training.train import Outcome, train

# Batch norm and no dropout; frozen batch norm, no dropout and three scales; dropout.
COMPACT, FROZEN, DROPOUT = "v2-compact-largefov", "v2-resnet50-largefov", "v2-vgg16-largefov"


def make(root: Path, **changes: Any) -> TrainSettings:
    """Six iterations of four crops on the data set of `dataset_files.write_folder` at ``root``."""
    values = {
        "model": COMPACT,
        "data": "folder",
        "root": str(root),
        "val_split": "",
        "iterations": 6,
        "batch": 4,
        "crop": 33,
        "learning_rate": 1e-2,
        "workers": 0,
        "checkpoint_every": 2,
    }
    return TrainSettings(**(values | changes))


def run(settings: TrainSettings, out: Path, **options: Any) -> Outcome:
    outcome = train(settings, out, **options)
    assert outcome is not None
    return outcome


def stored(out: Path) -> dict[str, Any]:
    """Return the content of the checkpoint."""
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_state(first: Path, second: Path) -> None:
    """Bit for bit: weights, statistics of batch norm, momentum, averages."""
    a, b = stored(first), stored(second)
    assert a["iteration"] == b["iteration"]
    for kind in ("network", "average"):
        assert a.get(kind, {}).keys() == b.get(kind, {}).keys()
        for name, value in a.get(kind, {}).items():
            assert torch.equal(value, b[kind][name]), name
    assert a["optimizer"]["state"].keys() == b["optimizer"]["state"].keys()
    for number, value in a["optimizer"]["state"].items():
        assert value.keys() == b["optimizer"]["state"][number].keys()
        for name, part in value.items():
            assert torch.equal(part, b["optimizer"]["state"][number][name]), name


def losses(outcome: Outcome) -> list[float]:
    return [row.loss for row in outcome.rows]
