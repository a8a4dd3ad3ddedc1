"""Processes that train together, started by torchrun: the losses of one process with the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training_runs import FROZEN, losses, make, run, stored  # noqa: E402

from deeplab_crf.engine.distributed import join_world  # noqa: E402
from deeplab_crf.engine.log import read_log  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_networks")

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from training_runs import FROZEN, make, narrow_variants
from deeplab_crf.engine.train import train

options = {"model": FROZEN, "learning_rate": 1e-4, "class_weights": "balanced", "val_split": "val", "validate_every": 2}
with narrow_variants():
    outcome = train(make(Path(sys.argv[2]), accumulate=2, **options), Path(sys.argv[3]))
print("leads" if outcome is not None else "follows")
"""


def test_two_processes_are_one(data: Path, tmp_path: Path) -> None:
    """Three scales, weighted classes, two parts each: losses, weights and validations to rounding. No dropout, which each process
    draws for itself, and frozen batch norm."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [str(Path(__file__).parents[1]), str(data), str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["follows", "leads"]
    options = {
        "model": FROZEN,
        "learning_rate": 1e-4,
        "class_weights": "balanced",
        "val_split": "val",
        "validate_every": 2,
    }
    one = run(make(data, **options), tmp_path / "one")
    two = read_log(tmp_path / "two" / "log.csv")
    assert [row.loss for row in two] == pytest.approx(losses(one), rel=1e-5)
    assert [row.mean_iou for row in two] == [row.mean_iou for row in one.rows]
    assert len(set(losses(one))) == 6
    kept = stored(tmp_path / "two")["network"]
    for name, value in stored(tmp_path / "one")["network"].items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)


def test_batches_have_to_go_into_the_processes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from deeplab_crf.engine import train as loop
    from deeplab_crf.engine.distributed import World

    @contextmanager
    def three(device: str):
        yield World(0, 3, torch.device(device))

    monkeypatch.setattr(loop, "join_world", three)
    with pytest.raises(ValueError, match="batch must be a multiple of accumulate x processes, 2 x 3; got 4"):
        run(make(data, accumulate=2), tmp_path / "out")


def test_torchrun_numbers_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device must be cpu or cuda under torchrun"), join_world("cuda:1"):
        pass
