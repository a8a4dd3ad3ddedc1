"""``deeplab-crf refine``: files, folders, what is written and what is said."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import files, read
from numpy.typing import NDArray
from PIL import Image
from samples import photo

import deeplab_crf
import deeplab_crf.cli.refine as cli_refine
from deeplab_crf.cli import main
from deeplab_crf.core.pairwise import Bilateral, Gaussian
from deeplab_crf.core.presets import Preset, get_preset, save_preset

HEIGHT, WIDTH = 24, 32
PALETTE = (5, 5, 5, 250, 10, 10, 10, 250, 10, 10, 10, 250)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    image = photo(*size, seed=seed)
    Image.fromarray(image).save(path)
    return image


def write_labels(path: Path, ids: tuple[int, ...] = (0, 1), palette: tuple[int, ...] | None = PALETTE) -> NDArray[Any]:
    """Stripes of ``ids`` with some pixels of another one."""
    labels = np.repeat(np.arange(HEIGHT) * len(ids) // HEIGHT, WIDTH).reshape(HEIGHT, WIDTH)
    labels[::5, ::7] = (labels[::5, ::7] + 1) % len(ids)
    labels = np.array(ids)[labels]
    image = Image.fromarray(labels.astype(np.uint8 if max(ids) < 256 else np.uint16))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return labels


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str, Path]:
    """An image, its labels, and where the result shall go."""
    write_image(tmp_path / "cat.png")
    write_labels(tmp_path / "labels.png")
    return str(tmp_path / "cat.png"), str(tmp_path / "labels.png"), tmp_path / "out" / "cat.png"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Four images and labels a..d, and a folder for the results."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for seed, stem in enumerate("abcd"):
        write_image(images / f"{stem}.png", seed)
        write_labels(labels / f"{stem}.png")
    return images, labels, tmp_path / "out"


def expected(image: NDArray[Any], labels: NDArray[Any], classes: int, **settings: Any) -> NDArray[Any]:
    return deeplab_crf.dense_crf(image, labels=labels, num_labels=classes, **settings)


def test_labels_are_refined_as_the_library_does(pair: tuple[str, str, Path]) -> None:
    image, labels, out = pair
    assert main(["refine", image, labels, "-o", str(out)]) == 0
    before = read(Path(labels))
    want = expected(read(Path(image)), before, 2).argmax(axis=0)
    np.testing.assert_array_equal(read(out), want)
    assert (want != before).any(), "the CRF must have something to do here, or this test says nothing"
    assert files(out.parent) == ["cat.png"]


def test_palette_is_kept(pair: tuple[str, str, Path]) -> None:
    image, labels, out = pair
    assert main(["refine", image, labels, "-o", str(out)]) == 0
    with Image.open(out) as after, Image.open(labels) as before:
        assert after.mode == "P"
        assert after.getpalette() == before.getpalette()


def test_ids_above_255_are_written_in_16_bits(tmp_path: Path) -> None:
    write_image(tmp_path / "cat.png")
    labels = write_labels(tmp_path / "ids.png", ids=(3, 700), palette=None)
    out = tmp_path / "out.png"
    assert main(["refine", str(tmp_path / "cat.png"), str(tmp_path / "ids.png"), "-o", str(out)]) == 0
    with Image.open(out) as image:
        assert image.mode.startswith("I")
    assert set(np.unique(read(out))) == set(np.unique(labels)) == {3, 700}


def test_every_setting_reaches_the_library(pair: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(image: NDArray[Any], **settings: Any) -> NDArray[Any]:
        seen.update(settings)
        return np.zeros((3, HEIGHT, WIDTH), np.float32)

    monkeypatch.setattr("deeplab_crf.crf.refine_files.dense_crf", spy)
    monkeypatch.setattr(cli_refine, "find_device", lambda name: None)  # whatever this machine has
    image, labels, out = pair
    options = (
        "--preset deeplab-v2-vgg16 --gaussian-sxy 4,5 --gaussian-weight 6 --bilateral-sxy 70 --bilateral-srgb 7,8,9 "
        "--bilateral-weight 10 --iterations 11 --normalization before --damping 0.25 --tolerance 0.125 --threads 2 "
        "--confidence 0.9 --num-labels 3 --ignore-label 1 --device cuda:1"
    )
    assert main(["refine", image, labels, "-o", str(out), *options.split()]) == 0
    gaussian, bilateral = seen.pop("kernels")
    assert (gaussian.sxy, gaussian.weight) == ((4, 5), 6)
    assert (bilateral.sxy, bilateral.srgb, bilateral.weight) == ((70,), (7, 8, 9), 10)
    refined = seen.pop("labels")
    np.testing.assert_array_equal(refined == seen.pop("ignore_label"), read(Path(labels)) == 1)
    assert seen == {
        "num_labels": 3,
        "confidence": 0.9,
        "iterations": 11,
        "normalization": "before",
        "damping": 0.25,
        "tolerance": 0.125,
        "threads": 2,
        "device": "cuda:1",
        "image_range": (0, 255),  # files are read so
    }


@pytest.mark.parametrize("name", [None, "deeplab-v1-largefov"])
def test_presets_and_weight_zero(
    pair: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    seen: dict[str, Any] = {}

    def spy(image: NDArray[Any], **settings: Any) -> NDArray[Any]:
        seen.update(settings)
        return np.zeros((2, HEIGHT, WIDTH), np.float32)

    monkeypatch.setattr("deeplab_crf.crf.refine_files.dense_crf", spy)
    image, labels, out = pair
    extra = [] if name is None else ["--preset", name]
    assert main(["refine", image, labels, "-o", str(out), "--gaussian-weight", "0", *extra]) == 0
    preset = get_preset(name or "pydensecrf")
    (kernel,) = seen["kernels"]
    assert isinstance(kernel, Bilateral)
    assert (kernel.sxy, kernel.srgb, kernel.weight) == tuple(
        getattr(preset.kernels[1], field) for field in ("sxy", "srgb", "weight")
    )
    assert (seen["iterations"], seen["normalization"]) == (preset.iterations, preset.normalization)


def test_a_preset_file_is_taken_like_a_name(pair: tuple[str, str, Path], tmp_path: Path) -> None:
    image, labels, out = pair
    mine = Preset("mine", (Bilateral(9.0, 6.0, 5.0), Gaussian(2.0, 1.0)), iterations=3, normalization="before")
    save_preset(mine, tmp_path / "mine.toml")
    assert main(["refine", image, labels, "-o", str(out), "--preset", str(tmp_path / "mine.toml")]) == 0
    given = read(Path(labels))
    want = deeplab_crf.dense_crf(read(Path(image)), labels=given, preset=tmp_path / "mine.toml")
    np.testing.assert_array_equal(read(out), want.argmax(axis=0))
    assert (read(out) != given).any()


def test_an_unusable_preset_file_is_wrong_usage(
    pair: tuple[str, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels, out = pair
    (tmp_path / "mine.toml").write_text('name = "mine"\n')
    assert main(["refine", image, labels, "-o", str(out), "--preset", str(tmp_path / "mine.toml")]) == 2
    error = capsys.readouterr().err
    assert "Invalid value for '--preset': preset " in error
    assert "mine.toml: iterations must be given; got name" in error
    assert not out.exists()


def test_overlay_and_probabilities_lie_beside_the_result(pair: tuple[str, str, Path]) -> None:
    image, labels, out = pair
    assert main(["refine", image, labels, "-o", str(out), "--overlay", "--probabilities"]) == 0
    assert files(out.parent) == ["cat.png", "cat_overlay.png", "cat_probabilities.npz"]
    with np.load(out.with_name("cat_probabilities.npz")) as stored:
        probabilities, classes = stored["probabilities"], stored["classes"]
    assert probabilities.shape == (2, HEIGHT, WIDTH)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(classes[probabilities.argmax(axis=0)], read(out))
    overlay = read(out.with_name("cat_overlay.png"))
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    assert (overlay != read(Path(image))).any()


def test_coarse_scores_are_upsampled_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "cat.png")
    coarse = np.random.default_rng(0).normal(size=(3, HEIGHT // 4, WIDTH // 4)).astype(np.float32)
    np.save(tmp_path / "scores.npy", coarse)
    out = tmp_path / "out.png"
    arguments = ["refine", str(tmp_path / "cat.png"), str(tmp_path / "scores.npy"), "-o", str(out), "--iterations", "2"]
    assert main([*arguments, "--scores-are", "logits"]) == 0
    assert "upsampled bilinearly to 24 x 32" in capsys.readouterr().out
    fine = np.stack([Image.fromarray(plane).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for plane in coarse])
    want = deeplab_crf.dense_crf(image, logits=fine, iterations=2)
    np.testing.assert_array_equal(read(out), want.argmax(axis=0))

    assert main([*arguments, "--overwrite"]) == 1
    assert "cannot tell what these scores are" in capsys.readouterr().err


def test_saturated_scores_are_refined(tmp_path: Path) -> None:
    image = write_image(tmp_path / "cat.png")
    hard = np.eye(2, dtype=np.float32)[:, write_labels(tmp_path / "labels.png")]
    with np.errstate(divide="ignore"):
        np.save(tmp_path / "scores.npy", np.log(hard))
    cat, scores, out = (str(tmp_path / name) for name in ("cat.png", "scores.npy", "out.png"))
    assert main(["refine", cat, scores, "-o", out, "--probabilities"]) == 0
    with np.load(tmp_path / "out_probabilities.npz") as written:
        np.testing.assert_array_equal(
            written["probabilities"], deeplab_crf.dense_crf(image, logits=np.where(hard == 0, np.float32(-3.4e38), 0))
        )


def test_written_probabilities_are_read_again(pair: tuple[str, str, Path]) -> None:
    image, labels, out = pair
    assert main(["refine", image, labels, "-o", str(out), "--probabilities"]) == 0
    again = out.with_name("again.png")
    arguments = ["refine", image, str(out.with_name("cat_probabilities.npz")), "-o", str(again), "--iterations", "0"]
    assert main(arguments) == 0
    np.testing.assert_array_equal(read(again), read(out))


def test_labels_of_one_class_stay(tmp_path: Path) -> None:
    write_image(tmp_path / "cat.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(tmp_path / "l.png")
    out = tmp_path / "out.png"
    assert main(["refine", str(tmp_path / "cat.png"), str(tmp_path / "l.png"), "-o", str(out)]) == 0
    assert (read(out) == 7).all()


def test_a_file_that_exists_is_refused(pair: tuple[str, str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    image, labels, out = pair
    arguments = ["refine", image, labels, "-o", str(out)]
    out.parent.mkdir()
    out.write_bytes(b"finished")
    for options in ([], ["--overlay"]):
        assert main([*arguments, *options]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert f"Error: {out} exists; --overwrite replaces it, --skip-existing keeps it" in said.err
    for options in ([], ["--overlay"]):
        assert main([*arguments, "--skip-existing", *options]) == 0
        assert capsys.readouterr().out == f"{out} exists, skipped\n"
        assert files(out.parent) == ["cat.png"]
        assert out.read_bytes() == b"finished"
    assert main([*arguments, "--overwrite"]) == 0
    assert read(out).shape == (HEIGHT, WIDTH)


def test_folders_are_matched_by_stem_and_resumed(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, out = folders
    arguments = ["refine", str(images), str(labels), "-o", str(out)]
    write_image(images / "unlabelled.png")
    assert main(arguments) == 0
    assert files(out) == ["a.png", "b.png", "c.png", "d.png"]
    assert "4 of 4 done: 4 made; 1 images have no labels or scores" in capsys.readouterr().out

    (out / "b.png").unlink()
    assert main(arguments) == 0
    assert "4 of 4 done: 1 made, 3 up to date; 1 images" in capsys.readouterr().out
    assert (read(out / "b.png") < 2).all()
    (out / "c.png").write_bytes(b"kept")
    assert main([*arguments, "--skip-existing", "--iterations", "1"]) == 0
    assert "4 of 4 done: 4 skipped because they exist" in capsys.readouterr().out
    assert (out / "c.png").read_bytes() == b"kept"


def test_corrupt_files_are_reported_at_the_end_and_do_not_stop_the_others(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, out = folders
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:200])
    (labels / "c.png").unlink()
    (labels / "c.npy").write_bytes(b"garbage")
    write_labels(labels / "stray.png")
    assert main(["refine", str(images), str(labels), "-o", str(out), "--overlay"]) == 1
    assert files(out) == ["b.png", "b_overlay.png", "d.png", "d_overlay.png"]
    said = capsys.readouterr()
    assert "2 of 4 done" in said.out
    report = said.err[said.err.index("Error:") :].splitlines()
    assert report[0] == "Error: 3 failed:"
    assert any("stray.png: no image has this stem" in line for line in report)
    assert any("a.png: cannot be read as an image" in line for line in report)
    assert any("c.npy: cannot be read as a NumPy file" in line for line in report)
    assert len(report) == 4
    assert "Traceback" not in said.err


def test_folders_of_16_bit_and_scores_mix(folders: tuple[Path, Path, Path]) -> None:
    images, labels, out = folders
    (labels / "a.png").unlink()
    write_labels(labels / "a.png", ids=(1, 300), palette=None)
    (labels / "b.png").unlink()
    logits = np.random.default_rng(0).normal(size=(4, HEIGHT, WIDTH))
    logits[3] += 20
    np.savez(labels / "b.npz", logits=logits)
    assert main(["refine", str(images), str(labels), "-o", str(out)]) == 0
    assert set(np.unique(read(out / "a.png"))) == {1, 300}
    assert (read(out / "b.png") == 3).all()


BAD_USAGE = {
    "no command": [],
    "unknown command": ["refin"],
    "no output": ["refine", "{image}", "{labels}"],
    "missing image": ["refine", "nowhere.png", "{labels}", "-o", "{out}"],
    "unknown preset": ["refine", "{image}", "{labels}", "-o", "{out}", "--preset", "deeplab"],
    "zero width": ["refine", "{image}", "{labels}", "-o", "{out}", "--gaussian-sxy", "0"],
    "negative width": ["refine", "{image}", "{labels}", "-o", "{out}", "--bilateral-srgb=-3"],
    "three widths": ["refine", "{image}", "{labels}", "-o", "{out}", "--bilateral-sxy", "1,2,3"],
    "words": ["refine", "{image}", "{labels}", "-o", "{out}", "--bilateral-sxy", "wide"],
    "nan weight": ["refine", "{image}", "{labels}", "-o", "{out}", "--gaussian-weight", "nan"],
    "iterations": ["refine", "{image}", "{labels}", "-o", "{out}", "--iterations", "-1"],
    "confidence": ["refine", "{image}", "{labels}", "-o", "{out}", "--confidence", "1"],
    "damping": ["refine", "{image}", "{labels}", "-o", "{out}", "--damping", "1"],
    "threads": ["refine", "{image}", "{labels}", "-o", "{out}", "--threads", "0"],
    "one class": ["refine", "{image}", "{labels}", "-o", "{out}", "--num-labels", "1"],
    "ignore label": ["refine", "{image}", "{labels}", "-o", "{out}", "--ignore-label", "void"],
    "scores are": ["refine", "{image}", "{labels}", "-o", "{out}", "--scores-are", "labels"],
    "file and folder": ["refine", "{image}", "{folder}", "-o", "{out}"],
    "not a png": ["refine", "{image}", "{labels}", "-o", "{folder}/out.jpg"],
    "folder for a file": ["refine", "{image}", "{labels}", "-o", "{folder}"],
    "file for a folder": ["refine", "{folder}", "{folder}", "-o", "{labels}"],
    "bench size": ["bench", "--size", "500"],
    "bench threads": ["bench", "--threads", "0"],
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_one_line_and_status_2(
    pair: tuple[str, str, Path], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    image, labels, out = pair
    folder = Path(image).parent
    places = {"image": image, "labels": labels, "out": str(out), "folder": str(folder)}
    assert main([argument.format(**places) for argument in BAD_USAGE[case]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert "--help)" in said.err
    assert files(folder) == ["cat.png", "labels.png"]


def test_bad_data_is_one_line_and_status_1(pair: tuple[str, str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    image, labels, out = pair
    write_image(Path(image), size=(HEIGHT, WIDTH + 1))
    assert main(["refine", image, labels, "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {labels}: labels are 24 x 32")
    assert said.count("\n") == 1
    assert not out.exists()


def test_inputs_are_never_overwritten(pair: tuple[str, str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    image, labels, _ = pair
    before = Path(image).read_bytes()
    assert main(["refine", image, labels, "-o", image, "--overwrite"]) == 1
    assert "is an input and would be overwritten" in capsys.readouterr().err
    assert Path(image).read_bytes() == before
    folder = str(Path(image).parent)
    assert main(["refine", folder, folder, "-o", folder, "--overwrite"]) == 1
    assert Path(image).read_bytes() == before


def test_folder_results_that_would_collide(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, out = folders
    write_image(images / "a_overlay.png")
    write_labels(labels / "a_overlay.png")
    assert main(["refine", str(images), str(labels), "-o", str(out), "--overlay"]) == 1
    assert "two results would be called" in capsys.readouterr().err
    assert main(["refine", str(images), str(out.parent / "images"), "-o", str(out)]) == 1, "images are no labels"


def test_nothing_matches(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images, _, out = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["refine", str(images), str(empty), "-o", str(out)]) == 1
    assert "no file of" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a process there")
def test_ctrl_c_leaves_whole_files_only(tmp_path: Path) -> None:
    images, labels, out = tmp_path / "images", tmp_path / "labels", tmp_path / "out"
    images.mkdir()
    labels.mkdir()
    write_image(images / "0.png", size=(HEIGHT * 8, WIDTH * 8))
    np.savez(labels / "0.npz", logits=np.random.default_rng(0).normal(size=(8, HEIGHT, WIDTH)))
    for number in range(1, 200):
        (images / f"{number}.png").hardlink_to(images / "0.png")
        (labels / f"{number}.npz").hardlink_to(labels / "0.npz")
    command = [sys.executable, "-m", "deeplab_crf", "refine", str(images), str(labels), "-o", str(out)]
    options = ["--overlay", "--probabilities", "--iterations", "30"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 60
        while not (out.exists() and any(out.glob("*[0-9].png"))) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    written = files(out)
    assert 0 < len(written) < 600
    assert not [name for name in written if name.startswith(".")]
    for name in written:
        if name.endswith(".npz"):
            with np.load(out / name) as stored:
                assert stored["probabilities"].shape == (8, HEIGHT * 8, WIDTH * 8)
        else:
            assert read(out / name).shape[:2] == (HEIGHT * 8, WIDTH * 8)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a process there")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_is_heard_where_python_drops_it(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, out = folders
    done = []

    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def refine_file(job: Any, settings: Any) -> tuple[str, ...]:
        done.append(job)
        Closing()
        return ()

    monkeypatch.setattr("deeplab_crf.cli.refine.refine_file", refine_file)
    assert main(["refine", str(images), str(labels), "-o", str(out)]) == 130
    assert len(done) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_while_writing_leaves_nothing(pair: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels, out = pair

    def interrupted(self: Image.Image, stream: Any, **_: Any) -> None:
        stream.write(b"half an image")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert main(["refine", image, labels, "-o", str(out)]) == 130
    assert files(out.parent) == []


def test_defaults_are_those_of_dense_crf() -> None:
    gaussian, bilateral = get_preset("pydensecrf").kernels
    assert isinstance(gaussian, Gaussian)
    assert isinstance(bilateral, Bilateral)
    assert (gaussian.sxy, gaussian.weight) == (Gaussian().sxy, Gaussian().weight)
    assert (bilateral.sxy, bilateral.srgb, bilateral.weight) == (Bilateral().sxy, Bilateral().srgb, Bilateral().weight)


def test_a_place_that_cannot_be_written_to_is_named_before_the_work(
    pair: tuple[str, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels, out = pair
    wrong = Path(labels) / "below" / out.name
    assert main(["refine", image, labels, "-o", str(wrong)]) == 1
    assert capsys.readouterr().err.strip() == (
        f"Error: {wrong.parent}: results cannot be written there: {labels} is no folder"
    )
    images = Path(image).parent / "images"
    images.mkdir()
    (images / "cat.png").write_bytes(Path(image).read_bytes())
    assert main(["refine", str(images), str(images), "-o", f"{labels}/below"]) == 1
    assert f"{labels}/below: results cannot be written there" in capsys.readouterr().err
