"""A training that is broken off, wherever, and goes on: the same bits as one that never was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dataset_files import write_folder
from samples import run_python
from training_runs import COMPACT, DROPOUT, assert_same_state, losses, make, run, stored

from deeplab_crf.training.log import Row, read_log

pytestmark = pytest.mark.usefixtures("small_networks")

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from model_samples import narrow_variants
from training_runs import make, run

replace, written = os.replace, []
def die_at_the_third(source, target):
    written.append(Path(target).name)
    if written.count("checkpoint.pt") == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = die_at_the_third
with narrow_variants():
    run(make(Path(sys.argv[2]), val_split="val", validate_every=2, workers=1), Path(sys.argv[3]))
"""


class PowerCut(BaseException):
    """An error that no code catches."""


def dying_at(iteration: int) -> Callable[[Row], None]:
    def report(row: Row) -> None:
        if row.iteration == iteration:
            raise PowerCut

    return report


@pytest.mark.parametrize(("model", "optimizer"), [(COMPACT, "sgd"), (DROPOUT, "sgd"), (DROPOUT, "adamw")])
def test_broken_off_at_any_iteration(model: str, optimizer: str, data: Path, tmp_path: Path) -> None:
    settings = make(data, model=model, optimizer=optimizer, warmup=3, colour=0.2, accumulate=2, average=0.9)
    whole = run(settings, tmp_path / "whole")
    for iteration in range(1, 7):
        out = tmp_path / str(iteration)
        with pytest.raises(PowerCut):
            run(settings, out, report=dying_at(iteration))
        again = run(settings, out, resume=True)
        assert_same_state(tmp_path / "whole", out)
        assert losses(again) == losses(whole)
        assert [row.iteration for row in again.rows] == [1, 2, 3, 4, 5, 6]


def test_killed_while_it_saves(data: Path, tmp_path: Path) -> None:
    """SIGKILL after four iterations, before the file of their state has its name."""
    out = tmp_path / "out"
    done = run_python(KILLED, str(Path(__file__).parents[1] / "support"), str(data), str(out))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert stored(out)["iteration"] == 2
    assert len(read_log(out / "log.csv")) == 4
    settings = make(data, val_split="val", validate_every=2)
    again = run(settings, out, resume=True)
    whole = run(settings, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", out)
    assert losses(again) == losses(whole)
    assert [row.mean_iou for row in again.rows] == [row.mean_iou for row in whole.rows]
    assert not list(out.glob(".*"))  # what was half-written is gone


def test_stopped_in_good_order(data: Path, tmp_path: Path) -> None:
    settings, out = make(data, checkpoint_every=100), tmp_path / "out"
    seen: list[int] = []
    first = run(settings, out, report=lambda row: seen.append(row.iteration), should_stop=lambda: len(seen) == 2)
    assert (first.iteration, first.finished, seen) == (3, False, [1, 2, 3])
    assert not (out / "weights.safetensors").exists()
    second = run(settings, out, resume=True, report=lambda row: seen.append(row.iteration))
    assert (second.iteration, second.finished, seen) == (6, True, [1, 2, 3, 4, 5, 6])
    run(settings, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", out)
    third = run(settings, out, resume=True)  # nothing is left to do
    assert third == second


def test_only_the_same_training_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(make(data), out)
    before = (out / "checkpoint.pt").read_bytes()
    cases = [
        (
            {"model": "v2-compact-aspp"},
            r"is of another network: v2-compact-largefov with 3 classes at one scale; this .*-aspp",
        ),
        ({"multi_scale": True}, r"is of another network: .* at one scale; this training's is .* at several scales"),
        ({"learning_rate": 0.5}, r"of a training with other settings: learning_rate = 0\.5 \(there 0\.01\)"),
        ({"batch": 2, "seed": 1}, r"other settings: batch = 2 \(there 4\), seed = 1 \(there 0\)"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            run(make(data, **changes), out, resume=True)
    run(make(data, workers=1, checkpoint_every=5, validate_every=3, val_split="val"), out, resume=True)
    (data / "classes.txt").write_text("a\nb\nc\nd\n")
    try:
        with pytest.raises(ValueError, match=r"with 3 classes at one scale; this training's is .* with 4 classes"):
            run(make(data), out, resume=True)
    finally:
        (data / "classes.txt").write_text("ground\nsky\nthing\n")
    assert (out / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("change", ["names", "classes"])
def test_a_checkpoint_of_other_data_of_the_same_form(change: str, tmp_path: Path) -> None:
    """The root may change, since data sets move; what is in it may not: seeds refer to the images' order, ids to classes'."""
    out, data = tmp_path / "out", write_folder(tmp_path / "data")
    run(make(data), out, should_stop=lambda: True)
    data = data.rename(tmp_path / "moved")
    run(make(data), out, resume=True, should_stop=lambda: True)
    before = (out / "checkpoint.pt").read_bytes()
    if change == "names":
        for kind in ("images", "labels"):
            (data / kind / "train" / "train0.png").rename(data / kind / "train" / "zebra.png")
    else:
        (data / "classes.txt").write_text("sky\nground\nthing\n")
    with pytest.raises(ValueError, match=r"of a training on other data: images or classes in .*moved have other names"):
        run(make(data), out, resume=True)
    assert (out / "checkpoint.pt").read_bytes() == before
    old = stored(out)
    del old["data"]
    torch.save(old, out / "checkpoint.pt")
    assert run(make(data), out, resume=True).finished, "checkpoints from before do not say"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_files_that_are_no_checkpoint(content: bytes | None, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    if content is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt.*(cannot be read as|is not) a checkpoint"):
        run(make(data), tmp_path, resume=True)
    path.unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: no such checkpoint"):
        run(make(data), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": None}, "optimizer is missing, or something else; the checkpoint is damaged"),
        ({"network": [1], "settings": 2}, "settings, network is missing, or something else"),
        ({"iteration": "3"}, "iteration is missing, or something else"),
        ({"iteration": 7}, "must be of 0 to 6 iterations; got 7"),
        ({"average": None}, "average is missing, or something else; the checkpoint is damaged"),
    ],
)
def test_checkpoints_whose_parts_are_not_what_they_should_be(
    changes: dict[str, object], message: str, data: Path, tmp_path: Path
) -> None:
    settings = make(data, average=0.5)
    run(settings, tmp_path, should_stop=lambda: True)
    torch.save(stored(tmp_path) | changes, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"checkpoint\.pt.*{message}"):
        run(settings, tmp_path, resume=True)


def test_checkpoints_from_before_a_setting_was_there(data: Path, tmp_path: Path) -> None:
    """Head_rate and average came later: by default they change nothing."""
    run(make(data), tmp_path, should_stop=lambda: True)
    old = stored(tmp_path)
    del old["settings"]["head_rate"], old["settings"]["average"]
    torch.save(old, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"other settings: average = 0\.5 \(there 0\.0\)"):
        run(make(data, average=0.5), tmp_path, resume=True)
    assert run(make(data), tmp_path, resume=True).finished


def test_nothing_in_a_checkpoint_is_run(data: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/run",)

    torch.save({"format": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run(make(data), tmp_path, resume=True)
    assert not (tmp_path / "run").exists()


def test_a_log_with_an_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "iteration,loss,learning_rate,images_per_second,mean_iou,pixel_accuracy\n1,0.5,0.1,3.0,,\n2,0.4,0.1,3.0,0.2"
    )
    assert read_log(path) == [Row(1, 0.5, 0.1, 3.0)]


@pytest.mark.parametrize("line", [b"one,0.5,0.1,3.0,,\n", b"1,0.5\n", b"\xff\xfe\n"])
def test_a_log_that_is_damaged(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"iteration,loss,learning_rate,images_per_second,mean_iou,pixel_accuracy\n" + line)
    with pytest.raises(ValueError, match=rf"{path}: cannot be read as a training's log .*; move it away"):
        read_log(path)
