"""Processes that train together, started by torchrun: the losses of one process with the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import FROZEN, make, run, stored

from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.models import build_model, load_model
from deeplab_crf.runtime.processes import World, join_world
from deeplab_crf.training import train as loop
from deeplab_crf.training.batch_norm import SharedBatchNorm2d, shared_batch_norm
from deeplab_crf.training.log import read_log
from deeplab_crf.training.validation import validate

pytestmark = pytest.mark.usefixtures("small_networks")

# A small learning rate: with 1e-2 batch norm makes of a rounding error of 1e-7 one of 1e-3 within five iterations, on some
# instruction sets.
VALIDATED = {"val_split": "val", "validate_every": 2, "learning_rate": 1e-4}
THREE_SCALES = {"model": FROZEN, "class_weights": "balanced", **VALIDATED}

SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_distributed import THREE_SCALES, VALIDATED, norm_of_a_share
from model_samples import narrow_variants
from training_runs import make
from deeplab_crf.training.train import train

data, out = map(Path, sys.argv[3:])
norm_of_a_share(out)
with narrow_variants():
    outcome = train(make(data, accumulate=2, **THREE_SCALES), out / "scales")
    train(make(data, **VALIDATED), out / "norm")
print("leads" if outcome is not None else "follows")
"""


def batch_and_norm() -> tuple[torch.Tensor, torch.nn.Module]:
    """Four images of features, the mean not zero, and a batch norm with weights."""
    torch.manual_seed(0)
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    torch.nn.init.normal_(norm[0].weight)
    torch.nn.init.normal_(norm[0].bias)
    return 10 + torch.randn(4, 3, 5, 7), norm


def norm_of_a_share(out: Path) -> None:
    """Result, gradients and statistics of this process's half of the batch, in a file."""
    world = join_world("cpu")
    batch, norm = batch_and_norm()
    x = batch[2 * world.rank : 2 * world.rank + 2].clone().requires_grad_()
    with shared_batch_norm(norm):
        y = norm(x)
        half = norm(x.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    assert type(norm[0]) is torch.nn.BatchNorm2d
    y.square().sum().backward()
    torch.save(
        [y.detach(), x.grad, norm[0].weight.grad, norm[0].bias.grad, norm.state_dict()], out / f"norm{world.rank}.pt"
    )


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
    folders = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent), str(data), str(out)]
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


def test_batch_norm_of_two_processes_is_that_of_the_whole_batch(
    two_processes: Path, data: Path, tmp_path: Path
) -> None:
    """Its statistics were those of each process's own part before; those that are saved are what is validated with."""
    run(make(data, **VALIDATED), tmp_path / "one")
    assert_alike(tmp_path / "one", two_processes / "norm")
    kept = stored(two_processes / "norm")["network"]
    for name, value in stored(tmp_path / "one")["network"].items():
        if "running" in name or "num_batches" in name:
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5)
    network, _ = load_model(two_processes / "norm" / "weights.safetensors")
    found = validate(network, open_dataset("folder", data, "val"), World(0, 1, torch.device("cpu")))
    last = read_log(two_processes / "norm" / "log.csv")[-1]
    assert (last.mean_iou, last.pixel_accuracy) == (found.mean_iou, found.pixel_accuracy)


def test_shared_batch_norm_is_torch_s_of_the_whole_batch(two_processes: Path) -> None:
    shares = [torch.load(two_processes / f"norm{rank}.pt") for rank in range(2)]
    batch, norm = batch_and_norm()
    x = batch.clone().requires_grad_()
    y = norm(x)
    norm(batch.bfloat16())
    y.square().sum().backward()
    for number, want in ((0, y.detach()), (1, x.grad)):
        torch.testing.assert_close(torch.cat([share[number] for share in shares]), want, rtol=1e-5, atol=1e-5)
    for number, want in ((2, norm[0].weight.grad), (3, norm[0].bias.grad)):
        torch.testing.assert_close(sum(share[number] for share in shares), want, rtol=1e-4, atol=1e-4)
    for name, want in norm.state_dict().items():
        torch.testing.assert_close(shares[0][4][name], want, rtol=1e-5, atol=1e-5)
        assert torch.equal(shares[0][4][name], shares[1][4][name])


def test_frozen_batch_norm_is_not_shared() -> None:
    network = build_model(FROZEN, 3).train()
    with shared_batch_norm(network):
        assert not any(isinstance(module, SharedBatchNorm2d) for module in network.modules())


def test_batches_have_to_go_into_the_processes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "join_world", lambda device: World(0, 3, torch.device(device)))
    with pytest.raises(ValueError, match="batch must be a multiple of accumulate x processes, 2 x 3; got 4"):
        run(make(data, accumulate=2), tmp_path / "out")


def test_torchrun_numbers_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device must be cpu or cuda under torchrun"):
        join_world("cuda:1")
