"""Failures of a training, and the files that they leave."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import write_folder
from model_samples import narrow_variants
from PIL import Image
from training_runs import assert_same_state, make, run, stored

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.runtime import files
from deeplab_crf.training import train as loop

pytestmark = pytest.mark.usefixtures("small_networks")


def is_finite(out: Path) -> bool:
    return all(bool(value.isfinite().all()) for value in stored(out)["network"].values())


def test_a_loss_that_diverges(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"the loss became (nan|inf) in iteration \d; the last checkpoint, .* kept"
    ):
        run(make(data, learning_rate=1e20, checkpoint_every=100), tmp_path / "out")
    assert stored(tmp_path / "out")["iteration"] == 0
    assert is_finite(tmp_path / "out")


def test_weights_that_diverge_before_the_loss_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of NaN would be worth nothing: the one before stays."""
    descend = loop.Training._descend

    def poisoned(training: Any, *arguments: Any) -> float:
        value = descend(training, *arguments)
        if training.iteration == 4:
            with torch.no_grad():
                next(training.network.parameters())[0, 0, 0, 0] = float("nan")
        return value

    monkeypatch.setattr(loop.Training, "_descend", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"holds NaN or inf after 4 iterations; the last checkpoint, .* is kept"
    ):
        run(make(data), tmp_path / "out")
    assert stored(tmp_path / "out")["iteration"] == 2
    assert is_finite(tmp_path / "out")


class FullDisk:
    """A file that takes some bytes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, data: Any) -> int:
        self.stream.write(bytes(data)[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, writes = tmp_path / "out", []

    def opened(path: Any, mode: str, *arguments: Any, **options: Any) -> Any:
        stream = open(path, mode, *arguments, **options)  # noqa: SIM115 (closed by whoever asked)
        if "checkpoint.pt" in str(path):
            writes.append(path)
            return FullDisk(stream) if len(writes) == 3 else stream
        return stream

    monkeypatch.setattr(files, "open", opened, raising=False)
    with pytest.raises(
        OSError, match=r"the checkpoint cannot be written \(No space left on device\); what was there, of 2 it"
    ):
        run(make(data), out)
    assert not list(out.glob(".*"))
    assert stored(out)["iteration"] == 2
    monkeypatch.undo()
    with narrow_variants():
        run(make(data), out, resume=True)
        run(make(data), tmp_path / "whole")
    assert_same_state(tmp_path / "whole", out)


def broken(root: Path, labels: np.ndarray) -> Path:
    """A data set whose third image has these labels; returns their file."""
    path = write_folder(root) / "labels" / "train" / "train2.png"
    Image.fromarray(labels.astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((40, 48), 9), r"{}: label values must be 0\.\.2 or 255 \(void\); got 9"),
        (np.zeros((40, 40)), r"{}: labels must have the size of .*train2\.png, \(40, 48\); got \(40, 40\)"),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, message: str, workers: int, tmp_path: Path) -> None:
    """One line, also from a process that reads data, and the training goes on when the file is put right."""
    path = broken(tmp_path / "data", labels)
    settings = make(tmp_path / "data", batch=1, iterations=5, checkpoint_every=100, workers=workers)
    with pytest.raises(ValueError, match=f"^{message.format(path)}$"):
        run(settings, tmp_path / "out")
    reached = stored(tmp_path / "out")["iteration"]
    assert 0 <= reached < 5
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(path)
    run(settings, tmp_path / "out", resume=True)
    run(settings, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", tmp_path / "out")


def test_a_process_that_reads_data_dies(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = SegmentationFolder.__getitem__
    count = 0

    def dying(folder: SegmentationFolder, index: int) -> Any:
        nonlocal count
        count += 1
        if torch.utils.data.get_worker_info() is not None and count == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(folder, index)

    monkeypatch.setattr(SegmentationFolder, "__getitem__", dying)
    settings = make(data, workers=1, iterations=6, checkpoint_every=100)
    with pytest.raises(ChildProcessError, match=r"a process that reads data died .*use fewer workers"):
        run(settings, tmp_path / "out")
    assert stored(tmp_path / "out")["iteration"] in (3, 4)  # it died in the fifth batch, reading two ahead
    monkeypatch.setattr(SegmentationFolder, "__getitem__", read)
    run(settings, tmp_path / "out", resume=True)
    run(settings, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", tmp_path / "out")


def test_what_is_there_is_not_lost(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(make(data), out)
    with pytest.raises(ValueError, match="out is not empty: go on with --resume, begin anew with --overwrite"):
        run(make(data, seed=1), out)
    assert stored(out)["settings"]["seed"] == 0
    (out / "mine.txt").write_text("not a training's")
    (out / "events").mkdir()
    (out / "events" / "events.out.tfevents.1").write_text("TensorBoard's curves of the training before")
    again = run(make(data, seed=1, iterations=3), out, overwrite=True)
    assert len(again.rows) == 3
    assert (out / "mine.txt").exists()
    assert not any((out / "events").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file must be a folder; it is a file"):
        run(make(data), tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "camvid"}, r"train\.txt: no such list"),
        ({"val_split": "test"}, "no split .test."),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"init": "/nowhere/w.safetensors"}, "w.safetensors"),
    ],
)
def test_settings_that_do_not_fit_the_world(changes: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run(make(data, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_list(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (root / "train.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"train\.txt: the list is empty"):
        run(make(root), tmp_path / "out")
