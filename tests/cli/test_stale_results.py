"""Results in a folder are skipped only while they are what the command would write: `deeplab-crf refine`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import photo

from deeplab_crf.cli import main
from deeplab_crf.core.pairwise import Bilateral
from deeplab_crf.core.presets import Preset, save_preset
from deeplab_crf.data.results import RECORDS
from deeplab_crf.runtime import files

HEIGHT, WIDTH = 12, 16
AGAIN = "made again because inputs, settings or results had changed"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three images and their labels, and a folder for the results."""
    images, labels, out = (tmp_path / name for name in ("images", "labels", "out"))
    images.mkdir()
    labels.mkdir()
    for seed, stem in enumerate("abc"):
        Image.fromarray(photo(HEIGHT, WIDTH, seed=seed)).save(images / f"{stem}.png")
        Image.fromarray((np.indices((HEIGHT, WIDTH)).sum(axis=0) // 9 % 2).astype(np.uint8)).save(
            labels / f"{stem}.png"
        )
    return images, labels, out


@pytest.fixture
def refine(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Refines the folders with options; returns the closing line."""

    def run(*options: object, status: int = 0) -> str:
        assert main(["refine", *map(str, folders[:2]), "-o", str(folders[2]), *map(str, options)]) == status
        said = capsys.readouterr()
        return (said.err if status else said.out).strip()

    return run


Refine = Callable[..., str]
Folders = tuple[Path, Path, Path]


def test_what_is_true_is_skipped(refine: Refine, folders: Folders) -> None:
    assert refine() == "3 of 3 done: 3 made"
    written = {path.name: path.stat().st_mtime_ns for path in folders[2].glob("*.png")}
    assert refine() == "3 of 3 done: 3 up to date"
    assert refine("--threads", 1) == "3 of 3 done: 3 up to date", "threads do not change a bit"
    assert {path.name: path.stat().st_mtime_ns for path in folders[2].glob("*.png")} == written
    assert refine("--overwrite") == "3 of 3 done: 3 made again"


@pytest.mark.parametrize(
    "option",
    [
        "--bilateral-sxy 30",
        "--gaussian-weight 0",
        "--iterations 2",
        "--normalization after",
        "--damping 0.5",
        "--confidence 0.8",
        "--num-labels 3",
        "--ignore-label none",
        "--map-labels 1=0",
        "--preset crfasrnn",
    ],
)
def test_other_settings(refine: Refine, option: str) -> None:
    refine()
    assert refine(*option.split()) == f"3 of 3 done: 3 {AGAIN}"
    assert refine(*option.split()) == "3 of 3 done: 3 up to date"
    assert refine() == f"3 of 3 done: 3 {AGAIN}"


def test_another_preset_in_the_same_file(refine: Refine, tmp_path: Path) -> None:
    for iterations in (2, 3):
        save_preset(Preset("mine", (Bilateral(9.0, 30.0, 5.0),), iterations=iterations), tmp_path / "mine.toml")
        refine("--preset", tmp_path / "mine.toml")
    assert refine("--preset", tmp_path / "mine.toml") == "3 of 3 done: 3 up to date"
    save_preset(Preset("mine", (Bilateral(9.0, 31.0, 5.0),), iterations=3), tmp_path / "mine.toml")
    assert refine("--preset", tmp_path / "mine.toml") == f"3 of 3 done: 3 {AGAIN}"


def test_another_version_of_the_package(refine: Refine, monkeypatch: pytest.MonkeyPatch) -> None:
    refine()
    monkeypatch.setattr("deeplab_crf.data.results.__version__", "0.1.1")
    assert refine() == f"3 of 3 done: 3 {AGAIN}"


def test_other_inputs(refine: Refine, folders: Folders) -> None:
    images, labels, _ = folders
    refine()
    Image.fromarray(photo(HEIGHT, WIDTH, seed=9)).save(images / "a.png")
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(labels / "b.png")
    assert refine() == f"3 of 3 done: 2 {AGAIN}, 1 up to date"
    assert refine() == "3 of 3 done: 3 up to date"


def test_damaged_and_edited_results(refine: Refine, folders: Folders) -> None:
    out = folders[2]
    refine("--overlay", "--probabilities")
    whole = {path.name: path.read_bytes() for path in out.iterdir() if path.name != RECORDS}
    (out / "a.png").write_bytes(whole["a.png"][:-20])
    (out / "b_overlay.png").write_bytes(whole["c_overlay.png"])
    (out / "c_probabilities.npz").unlink()
    assert refine("--overlay", "--probabilities") == f"3 of 3 done: 3 {AGAIN}"
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != RECORDS} == whole
    (out / "a_overlay.png").write_bytes(b"")
    assert refine() == "3 of 3 done: 3 up to date", "what is not asked for does not count"


def test_overlays_of_other_settings_do_not_stay_beside_the_labels(refine: Refine, folders: Folders) -> None:
    out = folders[2]
    refine("--overlay")
    (out / "b_overlay.png").write_bytes(b"painted over by hand")
    assert refine("--iterations", 1) == f"3 of 3 done: 3 {AGAIN}"
    assert sorted(path.name for path in out.glob("*_overlay.png")) == ["b_overlay.png"], (
        "and no file of the user is removed"
    )
    refine("--iterations", 1, "--probabilities")
    refine("--iterations", 1, "--overwrite")
    assert len(list(out.glob("*.npz"))) == 3, "of the same settings, they are still true"


def test_files_of_unknown_origin_are_refused(refine: Refine, folders: Folders) -> None:
    out = folders[2]
    out.mkdir()
    (out / "b.png").write_bytes(b"drawn by hand")
    (out / "c.png").write_bytes(b"drawn by hand")
    message = refine(status=1)
    assert f"{out / 'b.png'} and 1 more exist already, of unknown origin: no record in {out} says" in message
    assert "--overwrite, or keep it with --skip-existing" in message
    assert message.count("\n") == 0
    assert sorted(path.name for path in out.iterdir()) == ["b.png", "c.png"], "nothing was begun"
    assert refine("--skip-existing") == "3 of 3 done: 1 made, 2 skipped because they exist"
    assert refine("--skip-existing", "--overlay") == "3 of 3 done: 3 skipped because they exist"
    assert (out / "b.png").read_bytes() == b"drawn by hand"
    assert refine("--overwrite") == "3 of 3 done: 3 made again"
    assert refine() == "3 of 3 done: 3 up to date"


@pytest.mark.parametrize(
    "line",
    [
        b"{torn",
        b'{"inputs": "", "settings": "", "outputs": {"../a.png": ""}}',
        b'{"inputs": 1, "settings": 2, "outputs": {"a.png": 3}}',
        b'{"inputs": "", "settings": "", "outputs": []}',
        b"[" * 100_000,
        b"\xff\x00",
    ],
)
def test_a_damaged_line_costs_no_other_one(refine: Refine, folders: Folders, line: bytes) -> None:
    images, _, out = folders
    refine()
    with open(out / RECORDS, "ab") as stream:
        stream.write(line)
    Image.fromarray(photo(HEIGHT, WIDTH, seed=9)).save(images / "a.png")
    assert refine() == f"3 of 3 done: 1 {AGAIN}, 2 up to date"
    assert refine() == "3 of 3 done: 3 up to date"


def test_a_folder_that_moves_keeps_its_records(
    refine: Refine, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, out = folders
    refine()
    out.rename(out.with_name("moved"))
    assert main(["refine", str(images), str(labels), "-o", str(out.with_name("moved"))]) == 0
    assert capsys.readouterr().out == "3 of 3 done: 3 up to date\n"


def start(folders: Folders, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deeplab_crf", "refine", *map(str, folders[:2]), "-o", str(folders[2]), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def copy_pairs(folders: Folders, count: int) -> None:
    for folder in folders[:2]:
        for number in range(count):
            (folder / f"{number}.png").hardlink_to(folder / "a.png")


def test_two_processes_in_one_folder_lose_no_records(refine: Refine, folders: Folders) -> None:
    copy_pairs(folders, 60)
    both = [start(folders), start(folders)]
    for process in both:
        said, errors = process.communicate(timeout=120)
        assert (process.returncode, errors.count("Error")) == (0, 0), errors
        assert said.startswith("63 of 63 done")
    assert refine() == "63 of 63 done: 63 up to date"


def test_two_processes_with_different_settings_leave_no_false_record(refine: Refine, folders: Folders) -> None:
    copy_pairs(folders, 20)
    images, labels, out = folders
    both = [start(folders, "--iterations", "1", "--overlay"), start(folders, "--iterations", "9", "--overlay")]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    refine("--iterations", 9, "--overlay")
    alone = out.with_name("alone")
    assert main(["refine", str(images), str(labels), "-o", str(alone), "--iterations", "9", "--overlay"]) == 0
    for path in alone.glob("*.png"):
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_goes_on_and_leaves_nothing(refine: Refine, folders: Folders) -> None:
    copy_pairs(folders, 100)
    out = folders[2]
    options = ("--overlay", "--probabilities", "--iterations", "40")
    process = start(folders, *options)
    end = time.monotonic() + 60
    while len(list(out.glob("*.npz"))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = len(list(out.glob("*.npz")))  # of one of them, overlays and record may be missing
    assert 3 <= begun < 103
    (out / f".0.png.{files._machine()}-1-{'0' * 8}.partial").write_bytes(b"half")
    said = refine(*options)
    assert said.startswith("103 of 103 done: ")
    assert any(f", {count} up to date" in said for count in (begun, begun - 1))
    assert not list(out.glob(".*.partial"))
    assert refine(*options) == "103 of 103 done: 103 up to date"
