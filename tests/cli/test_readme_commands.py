"""The commands of README.md, one after the other as they stand, on small data: none takes another one's results for its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import V1_FILE, net
from model_samples import narrow
from PIL import Image
from samples import photo
from slow_network import vgg_weights

from deeplab_crf.cli import main
from deeplab_crf.data.classes import VOC_CLASSES
from deeplab_crf.models import variants as table

README = Path(__file__).resolve().parents[2] / "README.md"
SIZE = (48, 64)
BUNDLED = ("deeplab-crf segment photos/ -o out/",)  # the others run a narrow network in the place of the released one
ELSEWHERE = ("demo", "info", "bench")  # in tests of their own; they read and write nothing that the others do

pytestmark = pytest.mark.skipif(not README.exists(), reason="needs the sources")


def commands() -> list[str]:
    section = README.read_text().partition("## Command line")[2]
    block = re.search(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    return [line.partition(" #")[0].strip() for line in block[1].splitlines()]


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that the commands read, in the current folder."""
    monkeypatch.chdir(tmp_path)
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    voc = Path("VOC2012")
    for folder in (
        "photos",
        "labels",
        voc / "JPEGImages",
        voc / "SegmentationClass",
        voc / "ImageSets" / "Segmentation",
    ):
        Path(folder).mkdir(parents=True)
    for path in (Path("photo.jpg"), Path("photos/a.jpg"), voc / "JPEGImages" / "a.jpg"):
        Image.fromarray(photo(*SIZE)).save(path)
    for path in (Path("labels.png"), Path("labels/a.png"), voc / "SegmentationClass" / "a.png"):
        Image.fromarray(labels).save(path)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    Image.fromarray(photo(*SIZE, channels=1)[:, :, 0].astype(np.uint16) * 16).save("scan.tif")
    np.save("scores.npy", np.random.default_rng(1).normal(size=(21, 6, 8)).astype(np.float32))
    released = net(vgg_weights(2, 5, 7, classes=len(VOC_CLASSES)), V1_FILE)
    Path("train_iter_20000.caffemodel").write_bytes(released)
    settings = {
        "data": '"voc"',
        "root": '"VOC2012"',
        "train_split": '"val"',
        "val_split": '""',
        "model": '"v2-compact-aspp"',
    }
    settings |= {"iterations": 1, "batch": 1, "crop": 33, "workers": 0}
    Path("aspp-l.toml").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_files")
def test_the_commands_work_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands()
    assert len(lines) > 10
    for line in lines:
        program, command, *arguments = shlex.split(line)
        assert program == "deeplab-crf"
        if command in ELSEWHERE:
            continue
        with pytest.MonkeyPatch.context() as patch:
            if line not in BUNDLED:
                small = {name: narrow(name) for name in table.VARIANTS}
                patch.setattr(table, "VARIANTS", small)
                patch.setattr("deeplab_crf.models.weights.load.VARIANTS", small)
            status = main([command, *arguments])
        said = capsys.readouterr()
        if "cuda" in arguments and status == 2:
            assert "device cuda" in said.err, said.err
            continue
        assert status == 0, f"{line}: {said.err}"
        assert "made again" not in said.out, line
        assert "skipped" not in said.out, line
        assert "up to date" not in said.out, line
    for path in ("out/a.png", "voc/a.png", "better.png", "better/a.png", "scores/a.npz", "tuned/preset.toml"):
        assert Path(path).is_file(), path
