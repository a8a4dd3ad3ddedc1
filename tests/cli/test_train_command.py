"""``deeplab-crf train``: settings from files and options, what is said, Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from dataset_files import write_folder
from model_samples import narrow_variants
from samples import run_python
from training_runs import COMPACT, assert_same_state, stored

from deeplab_crf.cli import main
from deeplab_crf.training.settings import make_settings, read_values

pytestmark = pytest.mark.usefixtures("small_networks")

CONFIG = f"""
model = "{COMPACT}"
data = "folder"
iterations = 4
batch = 2
crop = 33
workers = 0
checkpoint_every = 2
scales = [0.5, 1]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def train(*arguments: Any) -> int:
    return main(["train", *map(str, arguments), "--threads", "1"])


def test_file_and_options(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options come before the file; the training's folder says what was used; `segment` reads its weights."""
    out = tmp_path / "out"
    options = ["--root", data, "--scales", "0.75,1.25", "--no-mirror", "--learning-rate", 0.02, "--validate-every", 2]
    assert train(config, "-o", out, *options) == 0
    used = make_settings(read_values(out / "settings.toml"))
    assert (used.scales, used.mirror, used.learning_rate, used.iterations) == ((0.75, 1.25), False, 0.02, 4)
    spoken = capsys.readouterr()
    assert "4 iterations done, validation mIoU 0." in spoken.out
    assert f"results in {out}" in spoken.out
    assert "iteration 1 of 4: loss 1." in spoken.err
    assert "images/s, mIoU 0." in spoken.err
    image = data / "images" / "val" / "val0.png"
    assert main(["segment", str(image), "--weights", str(out / "weights.safetensors"), "-o", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "val0.png").exists()


def test_ctrl_c_keeps_the_state_and_says_how_to_go_on(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deeplab_crf.training import train as loop

    descend = loop.Training._descend

    def interrupted(training: Any, *arguments: Any) -> float:
        value = descend(training, *arguments)
        if training.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return value

    common = ["--root", data, "--val-split", ""]
    assert train(config, "-o", tmp_path / "whole", *common) == 0
    monkeypatch.setattr(loop.Training, "_descend", interrupted)
    out = tmp_path / "out"
    assert train(config, "-o", out, *common) == 130
    assert stored(out)["iteration"] == 3
    spoken = capsys.readouterr().err
    assert f"Stopped after iteration 3 of 4, which is kept. Go on with: deeplab-crf train -o {out} --resume" in spoken
    monkeypatch.undo()
    with narrow_variants():
        assert train("-o", out, "--resume") == 0
    assert_same_state(tmp_path / "whole", out)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_cannot_be_is_said_in_one_line(
    config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    bad = tmp_path / "bad.toml"
    bad.write_text("crops = 3")
    out = tmp_path / "out"
    cases = [
        (1, "root must be given", [config, "-o", out]),
        (1, "there is no setting called crops", [bad, "-o", out]),
        (1, "crop must be a whole number >= 1; got 0", [config, "-o", out, "--root", data, "--crop", 0]),
        (1, "train.txt: no such list", [config, "-o", out, "--root", data, "--data", "camvid"]),
        (1, "is not empty: go on with --resume", [config, "-o", full, "--root", data]),
        (1, "no such checkpoint", [config, "-o", full, "--root", data, "--resume"]),
        (1, "batch must be a multiple of accumulate", [config, "-o", out, "--root", data, "--accumulate", 3]),
        (1, "checkpoint.pt: no such checkpoint, so there is no training to go on with", ["-o", full, "--resume"]),
        (1, "bad.toml: there is no setting called crops", [bad, "-o", out, "--root", data]),
        (1, "the loss became", [config, "-o", tmp_path / "nan", "--root", data, "--learning-rate", 1e20]),
        (2, "--resume goes on and --overwrite begins anew", [config, "-o", out, "--resume", "--overwrite"]),
        (2, "'--scales': '1,b' is not a number, or several", [config, "-o", out, "--scales", "1,b"]),
        (2, "is not one of 'poly', 'step'", [config, "-o", out, "--policy", "cosine"]),
        (2, "Missing option '-o'", [config]),
    ]
    for status, message, arguments in cases:
        assert train(*arguments) == status, message
        spoken = capsys.readouterr().err
        assert message in spoken
        assert spoken.count("Error: ") == 1
    assert not out.exists()


def test_help_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\nfrom deeplab_crf.cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        f"sys.exit(main(['train', '-o', {str(tmp_path)!r}, '--model', 'v2-compact-aspp', '--data', 'voc', '--root', '.']))"
    )
    done = run_python(script)
    assert done.returncode == 1
    assert "--learning-rate FLOAT" in done.stdout
    assert done.stderr == 'Error: train needs torch, which is not installed: pip install "deeplab-crf[train]"\n'
