"""GradientOptions a CRF's numbers by gradient on saved scores, and what a tuning leaves in its folder."""

from __future__ import annotations

import csv
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import run_python
from tune_samples import loose_bar, no_bar, opened, write_tuning

from deeplab_crf.core.pairwise import Bilateral, Gaussian, PairwiseKernel
from deeplab_crf.core.presets import Preset, load_preset
from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.tuning import run as tune_run
from deeplab_crf.tuning.gradient import Epoch, GradientOptions, GradientTuner
from deeplab_crf.tuning.grid import Grid
from deeplab_crf.tuning.images import TuneImages, as_tensors
from deeplab_crf.tuning.run import Measure, Output, Search, read_all_scores, run_gradient, run_search

# Colour widths of 150 see no edges between colours that are 40 apart.
START = Preset("start", (Gaussian(2.0, 1.0), Bilateral(12.0, 150.0, 1.0)), iterations=3, normalization="after")
ABOUT = "4 images of folder train"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TuneImages:
    root = write_tuning(tmp_path_factory.mktemp("gradient"), noise=1.5)
    dataset = opened(root)
    scores, _ = read_all_scores(root / "scores", dataset, range(len(dataset)))
    return TuneImages(dataset, range(len(dataset)), scores)


def test_the_loss_falls_and_held_back_images_gain(images: TuneImages) -> None:
    train = TuneImages(images.dataset, images.indices[:3], images._scores[:3])
    held_back = TuneImages(images.dataset, images.indices[3:], images._scores[3:])
    epochs = list(GradientTuner(train, START, GradientOptions(epochs=25, rate=0.1, batch=2)).epochs())
    assert [epoch.number for epoch in epochs] == list(range(1, 26))
    assert epochs[-1].loss < 0.8 * epochs[0].loss
    learned = epochs[-1].preset
    assert held_back.measure(learned).mean_iou > held_back.measure(START).mean_iou + 0.05
    bilateral = learned.kernels[1]
    assert isinstance(bilateral, Bilateral)
    assert max(bilateral.widths_channels(3)) < 100
    assert bilateral.weight > 1


def test_the_first_loss_is_the_cross_entropy_of_the_start_on_scored_pixels(images: TuneImages) -> None:
    tuner = GradientTuner(images, START, GradientOptions(epochs=1, batch=len(images)))
    layer = DenseCRF(3, START.kernels, START.iterations, normalization="after")
    total, pixels = 0.0, 0
    for number in range(len(images)):
        logits, image, labels = as_tensors(images.prepare(number))
        scored = labels != 255
        log_q = layer(logits, image).movedim(1, -1)[scored]
        total -= float(log_q.gather(1, labels[scored][:, None]).sum())
        pixels += int(scored.sum())
    (epoch,) = tuner.epochs()
    assert epoch.loss == pytest.approx(total / pixels, rel=1e-5)


def test_each_number_moves_by_the_rate_in_the_first_step(images: TuneImages) -> None:
    """Adam's first step is the rate in every logarithm, whatever the gradient's size."""
    (epoch,) = GradientTuner(images, START, GradientOptions(epochs=1, rate=0.05, batch=len(images))).epochs()
    gaussian, bilateral = epoch.preset.kernels
    moved = [
        *np.log(np.array(gaussian.widths_xy) / 2.0),
        np.log(gaussian.weight),
        *np.log(np.array(bilateral.widths_xy) / 12.0),
        *np.log(np.array(bilateral.widths_channels(3)) / 150.0),
        np.log(bilateral.weight),
    ]
    np.testing.assert_allclose(np.abs(moved), 0.05, atol=2e-3)
    assert (epoch.preset.name, epoch.preset.iterations, epoch.preset.normalization) == ("start", 3, "after")


def test_the_same_seed_learns_the_same(images: TuneImages) -> None:
    learned = [
        [repr(epoch) for epoch in GradientTuner(images, START, GradientOptions(epochs=2, batch=1, seed=seed)).epochs()]
        for seed in (3, 3, 4)
    ]
    assert learned[0] == learned[1] != learned[2]


@pytest.mark.parametrize(
    "kernel", [Gaussian(weight=0), Gaussian(weight=-1), Bilateral(compat=-np.eye(3)), PairwiseKernel(np.zeros((4, 2)))]
)
def test_a_start_that_cannot_be_learned_from_is_refused(images: TuneImages, kernel: Any) -> None:
    with pytest.raises(ValueError, match=r"kernels\[0\] of the start must be a Gaussian or Bilateral with a positive"):
        GradientTuner(images, replace(START, kernels=(kernel,)), GradientOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be"),
        ({"batch": 0}, "batch must be"),
        ({"rate": 1.0}, "rate must be between 0 and 1"),
    ],
)
def test_ways_to_learn_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientOptions(**options)


def test_a_loss_that_is_not_finite_ends_it(images: TuneImages, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = GradientTuner(images, START, GradientOptions(epochs=1))
    monkeypatch.setattr(tuner, "refine", lambda logits, _image: logits * tuner._log_weights.sum() * torch.nan)
    with pytest.raises(ValueError, match="loss and gradients must stay finite; got loss nan"):
        list(tuner.epochs())
    assert tuner.preset().kernels[1].weight == 1  # nothing was learned from it


def test_a_gradient_run_keeps_the_best_epoch(images: TuneImages, tmp_path: Path) -> None:
    out = Output(tmp_path / "out", "mine", ABOUT)
    seen: list[tuple[int, float]] = []

    def note(epoch: Epoch, matrix: Any) -> None:
        seen.append((epoch.number, matrix.mean_iou))

    found = run_gradient(images, START, GradientOptions(epochs=8, rate=0.3, batch=2), Measure(), out, no_bar, note)
    with open(out.folder / "epochs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    scores = [float(row["mean_iou"]) for row in rows]
    assert seen == list(enumerate(scores))[1:]
    assert found.best.mean_iou == max(scores) > scores[0] == images.measure(START).mean_iou
    kept = load_preset(out.preset)
    assert images.measure(kept).matrix.tolist() == found.best.matrix.tolist()
    row = rows[scores.index(max(scores))]
    assert float(row["kernel1_sr"]) == kept.kernels[1].widths_channels(3)[0]
    assert float(row["kernel0_sy"]) == kept.kernels[0].widths_xy[1]
    assert kept.name == "mine"
    assert kept.description == (
        f"deeplab-crf tune: mean IoU {max(scores):.4f}, of the network alone {found.network.mean_iou:.4f}, on {ABOUT}"
    )
    with pytest.raises(ValueError, match=r"preset.toml is there already; choose another folder, or --overwrite"):
        run_gradient(images, START, GradientOptions(epochs=1), Measure(), out, no_bar)


def test_a_start_that_stays_the_best_is_kept(
    images: TuneImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = replace(START, kernels=(Gaussian(50.0, 100.0),))
    monkeypatch.setattr(GradientTuner, "epochs", lambda _self, _progress: iter([Epoch(1, 0.1, bad)]))
    out = Output(tmp_path, "mine", ABOUT)
    run_gradient(images, START, GradientOptions(epochs=1), Measure(), out, loose_bar)
    assert len(load_preset(out.preset).kernels) == 2


GRID = Grid((1.0,), (2.0,), (2.0, 4.0), (12.0,), (5.0, 10.0), (3,))


def test_a_search_leaves_preset_table_and_plot(images: TuneImages, tmp_path: Path) -> None:
    out = Output(tmp_path / "out", "mine", ABOUT)
    found = run_search(images, Search(GRID, 1, "after"), Measure(), {"images": 4}, out, no_bar)
    kept = load_preset(out.preset)
    assert kept.name == "mine"
    assert images.measure(kept).mean_iou == found.trial.mean_iou == found.best.mean_iou
    assert found.trials > 4
    assert found.computed == 4 * found.trials
    assert 0 < found.milliseconds < 10000
    assert sorted(path.name for path in out.folder.iterdir()) == [
        *(["heatmap.png"] if found.heatmap else []),
        "preset.toml",
        "setup.json",
        "table.csv",
    ]
    again = run_search(images, Search(GRID, 1, "after"), Measure(), {"images": 4}, out, no_bar)
    assert again.computed == 0
    assert again.trial == found.trial
    with pytest.raises(ValueError, match="normalization was 'after', now it is 'symmetric'"):
        run_search(images, Search(GRID, 1, "symmetric"), Measure(), {"images": 4}, out, no_bar)
    with pytest.raises(ValueError, match="measure was 'mean IoU', now it is 'mean IoU within 3 pixels"):
        run_search(images, Search(GRID, 1, "after"), Measure(3), {"images": 4}, out, no_bar)
    run_search(images, Search(GRID, 0, "symmetric"), Measure(), {}, replace(out, afresh=True), no_bar)
    assert load_preset(out.preset).normalization == "symmetric"


def test_a_search_spares_a_preset_that_is_not_its_own(images: TuneImages, tmp_path: Path) -> None:
    (tmp_path / "preset.toml").write_text("mine")
    with pytest.raises(ValueError, match=r"preset.toml is there already"):
        run_search(images, Search(GRID, 0, "after"), Measure(), {}, Output(tmp_path, "x", ABOUT), no_bar)
    assert [path.name for path in tmp_path.iterdir()] == ["preset.toml"]


def test_without_matplotlib_there_is_no_plot(
    images: TuneImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_trials: Any) -> None:
        raise ImportError("plots need matplotlib")

    monkeypatch.setattr(tune_run, "plot_trials", missing)
    found = run_search(images, Search(GRID, 0, "after"), Measure(), {}, Output(tmp_path, "x", ABOUT), no_bar)
    assert found.heatmap is None
    assert not (tmp_path / "heatmap.png").exists()


HOW = GradientOptions(epochs=4, rate=0.3, batch=3, seed=1)

KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from pathlib import Path
from tune_samples import loose_bar, opened
from test_gradient import ABOUT, HOW, START
from deeplab_crf.tuning.images import TuneImages
from deeplab_crf.tuning.run import Measure, Output, read_all_scores, run_gradient

root, out, last = Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
replace, written = os.replace, []
def dies(source, target):
    written.append(Path(target).name)
    if written.count(last) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dies
dataset = opened(root)
scores, _ = read_all_scores(root / "scores", dataset, range(len(dataset)))
images = TuneImages(dataset, range(len(dataset)), scores)
run_gradient(images, START, HOW, Measure(), Output(out, "mine", ABOUT), loose_bar)
"""


def tuned_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("last", ["checkpoint.pt", "epochs.csv", "preset.toml"])
def test_a_gradient_run_that_was_killed_goes_on_to_the_same_bits(last: str, images: TuneImages, tmp_path: Path) -> None:
    """SIGKILL in the second epoch, before one of its files has its name. The run was refused, or began anew, before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run_gradient(images, START, HOW, Measure(), Output(tmp_path / "whole", "mine", ABOUT), no_bar)
        root, out = images.dataset.items[0].image.parents[2], tmp_path / "out"
        here = Path(__file__)
        done = run_python(KILLED, str(here.parents[1] / "support"), str(here.parent), str(root), str(out), last)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (out / "checkpoint.pt").exists()
        seen: list[int] = []
        found = run_gradient(
            images,
            START,
            HOW,
            Measure(),
            Output(out, "mine", ABOUT),
            no_bar,
            lambda epoch, _: seen.append(epoch.number),
        )
    finally:
        torch.set_num_threads(before)
    assert found.resumed in (1, 2)
    assert seen == list(range(found.resumed + 1, 5))
    assert tuned_files(out) == tuned_files(tmp_path / "whole")
    assert sorted(tuned_files(out)) == ["epochs.csv", "preset.toml"]
    assert (repr(found.preset), found.best.matrix.tolist()) == (repr(whole.preset), whole.best.matrix.tolist())


def test_a_learner_goes_on_from_its_state(images: TuneImages) -> None:
    """Bit for bit, momentum and the order of images included, after any epoch."""
    whole = GradientTuner(images, START, HOW)
    epochs = list(whole.epochs())
    for done in range(1, 4):
        first, second = GradientTuner(images, START, HOW), GradientTuner(images, START, HOW)
        steps = first.epochs()
        for _ in range(done):
            next(steps)
        second.load(first.state())
        assert [repr(epoch) for epoch in second.epochs()] == [repr(epoch) for epoch in epochs[done:]]
        assert all(torch.equal(a, b) for a, b in zip(second.numbers(), whole.numbers(), strict=True))
    other = GradientTuner(images, replace(START, kernels=START.kernels[:1]), HOW)
    with pytest.raises(ValueError, match="the numbers that were learned are of other kernels than those of the start"):
        other.load(whole.state())


def test_only_the_same_gradient_run_goes_on(images: TuneImages, tmp_path: Path) -> None:
    class PowerCut(BaseException):
        """An error that no code catches."""

    def dies(epoch: Epoch, _matrix: Any) -> None:
        if epoch.number == 2:
            raise PowerCut

    out = Output(tmp_path, "mine", ABOUT)
    with pytest.raises(PowerCut):
        run_gradient(images, START, HOW, Measure(), out, loose_bar, dies, {"scores": "a"})
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    other = replace(START, iterations=2)
    for start, how, measure, scores, message in (
        (START, replace(HOW, rate=0.1), Measure(), "a", "rate was 0.3, now it is 0.1"),
        (START, replace(HOW, seed=2), Measure(), "a", "seed was 1, now it is 2"),
        (other, HOW, Measure(), "a", r"start was .*iterations=3.*, now it is .*iterations=2"),
        (START, HOW, Measure(3), "a", "measure was 'mean IoU', now it is 'mean IoU within 3 pixels"),
        (START, HOW, Measure(), "b", "scores was 'a', now it is 'b'. Choose another folder, or --overwrite"),
    ):
        with pytest.raises(ValueError, match=f"holds what another tuning has reached: {message}"):
            run_gradient(images, start, how, measure, out, loose_bar, setup={"scores": scores})
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    more = run_gradient(images, START, replace(HOW, epochs=5), Measure(), out, no_bar, setup={"scores": "a"})
    assert more.resumed == 2
    whole = run_gradient(
        images, START, replace(HOW, epochs=5), Measure(), Output(tmp_path / "x", "mine", ABOUT), no_bar
    )
    assert repr(more.preset) == repr(whole.preset)
    (tmp_path / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cannot be read as a checkpoint of deeplab-crf tune"):
        run_gradient(images, START, HOW, Measure(), out, no_bar)
    again = run_gradient(images, START, HOW, Measure(), replace(out, afresh=True), no_bar)
    assert again.resumed == 0
