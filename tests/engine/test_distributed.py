"""Processes that train together, started by torchrun: the losses of one process with the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training_runs import FROZEN, make, run, stored  # noqa: E402

from deeplab_crf.data.datasets import open_dataset  # noqa: E402
from deeplab_crf.engine import train as loop  # noqa: E402
from deeplab_crf.engine.distributed import World, join_world  # noqa: E402
from deeplab_crf.engine.log import read_log  # noqa: E402
from deeplab_crf.engine.validation import validate  # noqa: E402
from deeplab_crf.models import load_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_networks")

VALIDATED = {"val_split": "val", "validate_every": 2}
THREE_SCALES = {"model": FROZEN, "learning_rate": 1e-4, "class_weights": "balanced", **VALIDATED}

SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_distributed import THREE_SCALES, VALIDATED
from training_runs import make, narrow_variants
from deeplab_crf.engine.train import train

data, out = map(Path, sys.argv[3:])
with narrow_variants():
    outcome = train(make(data, accumulate=2, **THREE_SCALES), out / "scales")
    train(make(data, **VALIDATED), out / "norm")
print("leads" if outcome is not None else "follows")
"""


@pytest.fixture(scope="module")
def two_processes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trainings "scales" and "norm" of two processes."""
    out = tmp_path_factory.mktemp("two")
    (out / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(out / "script.py"),
    ]
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent), str(data), str(out)]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["follows", "leads"]
    return out


def assert_alike(one: Path, two: Path) -> None:
    """Losses and weights to rounding."""
    rows = [read_log(folder / "log.csv") for folder in (one, two)]
    assert [row.loss for row in rows[1]] == pytest.approx([row.loss for row in rows[0]], rel=1e-5)
    assert len({row.loss for row in rows[0]}) == 6
    kept = stored(two)["network"]
    for name, value in stored(one)["network"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)


def test_two_processes_are_one(two_processes: Path, data: Path, tmp_path: Path) -> None:
    """Three scales, weighted classes, two parts each. No dropout, which each process draws for itself, and frozen batch norm."""
    one = run(make(data, **THREE_SCALES), tmp_path)
    assert_alike(tmp_path, two_processes / "scales")
    scores = [row.mean_iou for row in read_log(two_processes / "scales" / "log.csv")]
    assert scores == [row.mean_iou for row in one.rows]


def test_batch_norm_of_two_processes_is_that_of_two_parts(two_processes: Path, data: Path, tmp_path: Path) -> None:
    """Each sees its own part; validated is with the statistics of the first, which are those that are saved."""
    run(make(data, accumulate=2, **VALIDATED), tmp_path / "one")
    assert_alike(tmp_path / "one", two_processes / "norm")
    network, _ = load_model(two_processes / "norm" / "weights.safetensors")
    found = validate(network, open_dataset("folder", data, "val"), World(0, 1, torch.device("cpu")))
    last = read_log(two_processes / "norm" / "log.csv")[-1]
    assert (last.mean_iou, last.pixel_accuracy) == (found.mean_iou, found.pixel_accuracy)


def test_batches_have_to_go_into_the_processes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "join_world", lambda device: World(0, 3, torch.device(device)))
    with pytest.raises(ValueError, match="batch must be a multiple of accumulate x processes, 2 x 3; got 4"):
        run(make(data, accumulate=2), tmp_path / "out")


def test_torchrun_numbers_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device must be cpu or cuda under torchrun"):
        join_world("cuda:1")
