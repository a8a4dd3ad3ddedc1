"""The search for a CRF's numbers: its points, its bits, what it keeps, and that it finds what is known to be best."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tune_samples import loose_bar, no_bar, opened, write_tuning

from deeplab_crf import dense_crf
from deeplab_crf.core.lattice import PermutohedralLattice
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.evaluation.saved_scores import SavedScores, write_saved_scores
from deeplab_crf.evaluation.trimap import band_widths
from deeplab_crf.models.interp import interp
from deeplab_crf.tuning import images as tune_images
from deeplab_crf.tuning import search as tune
from deeplab_crf.tuning.grid import Grid, Setting, neighbours, on_the_edge
from deeplab_crf.tuning.images import TuneImages, spread_evenly
from deeplab_crf.tuning.run import Measure, read_all_scores
from deeplab_crf.tuning.search import GridSearch, confusions
from deeplab_crf.tuning.table import Trial, TrialTable, best_trial, plot_trials

GRID = Grid(
    gaussian_weight=(1.0, 3.0),
    bilateral_weight=(2.0, 4.0, 8.0),
    bilateral_sxy=(4.0, 12.0),
    bilateral_srgb=(8.0, 30.0),
    iterations=(2, 5),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuning(tmp_path_factory.mktemp("tune"))


def images_of(root: Path, **options: Any) -> TuneImages:
    dataset = opened(root)
    indices = range(len(dataset))
    scores, _ = read_all_scores(root / "scores", dataset, indices)
    return TuneImages(dataset, indices, scores, **options)


def by_hand(root: Path, setting: Setting, normalization: str = "after") -> ConfusionMatrix:
    """Compute the matrix by `dense_crf`, image by image, from the files."""
    dataset, total = opened(root), ConfusionMatrix(3)
    for i in range(len(dataset)):
        example = dataset[i]
        with np.load(root / "scores" / f"{example.name}.npz") as stored:
            scores = torch.from_numpy(stored["scores"].astype(np.float32))
            logits = interp(scores[None], tuple(stored["size"].tolist()))[0, :, :40, :48].numpy()
        preset = setting.preset("x", normalization)
        found = dense_crf(
            example.image,
            logits=logits,
            kernels=preset.kernels,
            iterations=preset.iterations,
            normalization=normalization,
        )
        total.add(found.argmax(axis=0), example.labels)
    return total


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_trial_equals_separate_calls_of_dense_crf(
    root: Path, tmp_path: Path, normalization: str, threads: int
) -> None:
    table = TrialTable(tmp_path, {})
    GridSearch(images_of(root, threads=threads), table, normalization, no_bar).run(GRID, 0)
    assert [trial.setting for trial in table.trials] == GRID.settings()
    assert len({trial.mean_iou for trial in table.trials}) > 20  # the settings matter
    for trial in table.trials[::5]:
        want = by_hand(root, trial.setting, normalization)
        assert (trial.mean_iou, trial.pixel_accuracy) == (want.mean_iou, want.pixel_accuracy)


def test_probabilities_of_kept_lattices_have_the_bits_of_dense_crf(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        tune_images.PreparedImage,
        "confusion",
        lambda _self, values: seen.append(np.array(values)) or ConfusionMatrix(3),
    )
    image = images_of(root).prepare(0)
    group = [Setting(1.0, 3.0, weight, 12.0, 9.0, count) for weight in (2.0, 5.0) for count in (3, 7)]
    confusions(image, group, "after")
    confusions(image, group, "after")  # the Gaussian lattice comes from the cache now
    logits = image.scores.logits((40, 48), Path(image.name)).numpy()
    for setting, found in zip(group * 2, seen, strict=True):
        preset = setting.preset("x", "after")
        want = dense_crf(
            image.pixels, logits=logits, kernels=preset.kernels, iterations=setting.iterations, normalization="after"
        )
        np.testing.assert_array_equal(found, want.reshape(3, -1))


def test_lattices_are_built_once_for_all_weights_and_iterations(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(*arguments: Any, **options: Any) -> PermutohedralLattice:
        lattice = PermutohedralLattice(*arguments, **options)
        built.append(lattice.num_dimensions)
        return lattice

    monkeypatch.setattr(tune_images, "PermutohedralLattice", build)
    images = images_of(root)
    GridSearch(images, TrialTable(tmp_path, {}), "after", no_bar).run(GRID, 0)
    assert built.count(2) == len(images)
    assert built.count(5) == 4 * len(images)


def test_images_beyond_the_kept_memory_are_prepared_anew(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_all = TrialTable(tmp_path / "all", {})
    GridSearch(images_of(root), with_all, "after", no_bar).run(GRID, 0)
    images = images_of(root)
    monkeypatch.setattr(tune_images, "_LARGEST_CACHE", 2 * images.prepare(0).num_bytes)
    few = images_of(root)
    table = TrialTable(tmp_path / "few", {})
    GridSearch(few, table, "after", no_bar).run(GRID, 0)
    assert len(few._cache) == 2
    assert table.trials == with_all.trials


def test_a_search_that_was_interrupted_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TrialTable(tmp_path / "whole", {"x": 1})
    GridSearch(images_of(root), whole, "after", no_bar).run(GRID, 2)
    real, calls = confusions, []

    def interrupted(image: Any, group: Any, normalization: str) -> Any:
        calls.extend(group)
        if len(calls) > 60:
            raise KeyboardInterrupt
        return real(image, group, normalization)

    monkeypatch.setattr(tune, "confusions", interrupted)

    with pytest.raises(KeyboardInterrupt):
        GridSearch(images_of(root), TrialTable(tmp_path / "part", {"x": 1}), "after", loose_bar).run(GRID, 2)
    half = TrialTable(tmp_path / "part", {"x": 1})
    assert half.trials == whole.trials[: len(half.trials)]
    assert 0 < len(half.trials) < len(GRID.settings())
    monkeypatch.setattr(tune, "confusions", real)
    missing = len(whole.trials) - len(half.trials)
    again = GridSearch(images_of(root), half, "after", no_bar)
    again.run(GRID, 2)
    assert half.trials == whole.trials
    assert (tmp_path / "part" / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    assert again.computed == len(images_of(root)) * missing
    third = GridSearch(images_of(root), TrialTable(tmp_path / "part", {"x": 1}), "after", no_bar)
    third.run(GRID, 2)
    assert third.computed == 0


def test_a_larger_grid_takes_what_the_smaller_had(root: Path, tmp_path: Path) -> None:
    images, table = images_of(root), TrialTable(tmp_path, {})
    GridSearch(images, table, "after", no_bar).run(Grid((3,), (3,), (2, 4), (12,), (8,)), 0)
    search = GridSearch(images, table, "after", no_bar)
    search.run(Grid((3,), (3,), (2, 4, 6), (12,), (8,)), 0)
    assert search.computed == len(images)


def test_the_best_numbers_are_found_where_they_are_known(tmp_path: Path) -> None:
    """Classes are told apart by 40 in colour, noise moves it by some 3: colour widths of 100 see no edges, of 0.2 no neighbours."""
    root = write_tuning(tmp_path / "data", count=3, noise=1.5)
    images, table = images_of(root), TrialTable(tmp_path, {})
    trial = GridSearch(images, table, "after", no_bar).run(Grid((1,), (1,), (0, 4), (20,), (0.2, 10, 100)), 0)
    assert (trial.setting.bilateral_weight, trial.setting.bilateral_srgb) == (4, 10)
    network = images.measure(None)
    assert trial.mean_iou > network.mean_iou + 0.05
    assert max(each.mean_iou for each in table.trials if each.setting.bilateral_srgb != 10) < trial.mean_iou - 0.02


def test_rounds_come_closer_to_a_hidden_optimum(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure replaced by a hill whose top is known, inside the grid for one axis, far outside for another."""

    def hill(_self: Any, group: Any, number: int, advance: Any) -> list[Trial]:
        advance(len(group) * 4)
        heights = [-abs(each.bilateral_weight - 3.3) - abs(each.bilateral_sxy - 61) / 10 for each in group]
        return [Trial(each, number, height, 0.5) for each, height in zip(group, heights, strict=True)]

    monkeypatch.setattr(GridSearch, "_trials", hill)
    table = TrialTable(tmp_path, {})
    grid = Grid((3,), (3,), (2, 4, 6), (20, 30), (8,))
    best = GridSearch(images_of(root), table, "after", no_bar).run(grid, 7).setting
    assert abs(best.bilateral_weight - 3.3) < 0.1
    assert abs(best.bilateral_sxy - 61) < 4
    assert {trial.setting.gaussian_weight for trial in table.trials} == {3}
    assert len(set(table.trials)) == len(table.trials) == len({trial.setting for trial in table.trials})


def test_neighbours_halve_inside_and_step_out_at_the_edges() -> None:
    tried = Grid((3,), (3,), (2, 4, 6), (30, 50, 90), (3, 4), (5, 10)).settings()
    free = Grid((3,), (3,), (2, 4, 6), (30, 50, 90), (3, 4), (5, 10)).free
    assert free == ("bilateral_weight", "bilateral_sxy", "bilateral_srgb")
    around = neighbours(Setting(3, 3, 6, 50, 3, 10), tried, free)
    assert len(around) == 27
    assert {each.bilateral_weight for each in around} == {5, 6, 8}
    assert {each.bilateral_sxy for each in around} == {40, 50, 70}
    assert {each.bilateral_srgb for each in around} == {2, 3, 3.5}
    assert {each.iterations for each in around} == {10}
    assert {each.bilateral_sxy for each in neighbours(Setting(3, 3, 6, 30, 3, 10), tried, free)} == {10, 30, 40}
    wide = [*tried, Setting(3, 3, 6, 70, 3, 10)]
    low = [each for each in wide if each.bilateral_sxy in (30, 70)]
    assert {each.bilateral_sxy for each in neighbours(Setting(3, 3, 6, 30, 3, 10), low, free)} == {15, 30, 50}
    zero = Grid((3,), (3,), (0, 4), (30,), (3,))
    assert {each.bilateral_weight for each in neighbours(Setting(3, 3, 0, 30, 3, 10), zero.settings(), zero.free)} == {
        0,
        2,
    }
    assert on_the_edge(Setting(3, 3, 6, 50, 3, 10), tried, free) == ["bilateral_weight", "bilateral_srgb"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bilateral_sxy": ()}, "bilateral_sxy must hold at least one value; got none"),
        ({"bilateral_sxy": (30, 0)}, "bilateral_sxy must be positive and finite; got 0"),
        ({"gaussian_sxy": (float("inf"),)}, "gaussian_sxy must be positive and finite; got inf"),
        ({"bilateral_srgb": (float("nan"),)}, "bilateral_srgb must be positive and finite; got nan"),
        ({"bilateral_weight": (-1,)}, "bilateral_weight must be finite and >= 0; got -1"),
        ({"iterations": (2.5,)}, "iterations must be a whole number >= 1; got 2.5"),
        ({"iterations": (0,)}, "iterations must be a whole number >= 1; got 0"),
    ],
)
def test_grids_without_meaning_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Grid(**values)


def test_images_are_spread_evenly() -> None:
    assert spread_evenly(10, None) == tuple(range(10))
    assert spread_evenly(10, 4) == (0, 3, 6, 9)
    assert spread_evenly(10, 10) == tuple(range(10))
    for wrong in (0, 11):
        with pytest.raises(ValueError, match=rf"images must be a whole number in \[1, 10\]; got {wrong}"):
            spread_evenly(10, wrong)


def test_only_the_band_is_scored(root: Path) -> None:
    dataset = opened(root)
    images = images_of(root, scored=Measure(2, "boundary").scored)
    inside = sum(
        int(((band_widths(dataset[i].labels, "boundary") <= 2) & (dataset[i].labels != 255)).sum()) for i in range(4)
    )
    assert 0 < images.measure(None).num_pixels == inside < images_of(root).measure(None).num_pixels
    assert (
        images_of(root, scored=Measure().scored).measure(None).matrix.tolist()
        == images_of(root).measure(None).matrix.tolist()
    )
    assert (Measure(1).width, Measure(40).width) == (1, 40)
    for wrong in (0, 41):
        with pytest.raises(ValueError, match=rf"the trimap's width must be a whole number in \[1, 40\]; got {wrong}"):
            Measure(wrong)


def test_nothing_to_score_is_an_error(root: Path) -> None:
    images = images_of(root, scored=lambda labels: np.full_like(labels, 255))
    with pytest.raises(ValueError, match="labels must hold pixels to score; got none in 4 images"):
        images.measure(None)


def test_scores_that_do_not_fit_name_the_file(root: Path, tmp_path: Path) -> None:
    dataset = opened(root)
    with pytest.raises(ValueError, match=r"train0.npz: no such file; scores of 4 of 4 images are missing"):
        read_all_scores(tmp_path, dataset, range(4))
    write_saved_scores(tmp_path / "train0.npz", np.zeros((3, 6, 7)), (41, 49))
    with pytest.raises(ValueError, match=r"train1.npz: no such file; scores of 3 of 4"):
        read_all_scores(tmp_path, dataset, range(4))
    write_saved_scores(tmp_path / "train0.npz", np.zeros((5, 6, 7)), (41, 49))
    with pytest.raises(ValueError, match=r"train0.npz: scores must have the 3 classes of the data set; got 5"):
        read_all_scores(tmp_path, dataset, [0])
    np.savez(tmp_path / "train0.npz", logits=np.zeros((3, 6, 7)))
    with pytest.raises(ValueError, match=r'train0.npz: must hold "scores" and "size"'):
        read_all_scores(tmp_path, dataset, [0])
    (tmp_path / "train0.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"train0.npz: cannot be read"):
        read_all_scores(tmp_path, dataset, [0])
    small = SavedScores(np.zeros((3, 2, 2), np.float16), (9, 9))
    with pytest.raises(ValueError, match=r"train0: scores are of an image of 9 x 9"):
        TuneImages(dataset, [0], [small]).measure(None)
    with pytest.raises(ValueError, match="images must hold at least one image; got none"):
        TuneImages(dataset, [], [])


def test_digests_tell_scores_apart(root: Path, tmp_path: Path) -> None:
    dataset = opened(root)
    _, before = read_all_scores(root / "scores", dataset, range(4))
    assert read_all_scores(root / "scores", dataset, range(4))[1] == before
    for i in range(4):
        with np.load(root / "scores" / f"train{i}.npz") as stored:
            write_saved_scores(tmp_path / f"train{i}.npz", stored["scores"] + (i == 3), (41, 49))
    assert read_all_scores(tmp_path, dataset, range(4))[1] != before


def trial(weight: float, mean_iou: float, **others: Any) -> Trial:
    return Trial(Setting(3.0, 3.0, weight, 50.0, 1 / 3, 10)._replace(**others), 0, mean_iou, 0.75)


def test_the_table_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    table = TrialTable(tmp_path, {"images": 3})
    table.add([trial(0.1 + 0.2, 2 / 3)])
    table.add([trial(1e-7, 0.5), trial(4, 2 / 3)])
    again = TrialTable(tmp_path, {"images": 3})
    assert again.trials == table.trials
    assert best_trial(again.trials) is again.trials[0]
    with open(tmp_path / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["bilateral_srgb"]) for row in rows] == [1 / 3] * 3


def test_another_question_is_refused_unless_afresh(tmp_path: Path) -> None:
    TrialTable(tmp_path, {"images": 3, "measure": "a"}).add([trial(1, 0.5)])
    with pytest.raises(ValueError, match=r"holds trials of another search: images was 3, now it is 4. .*--overwrite"):
        TrialTable(tmp_path, {"images": 4, "measure": "a"})
    assert TrialTable(tmp_path, {"images": 3, "measure": "a"}).trials
    assert not TrialTable(tmp_path, {"images": 4, "measure": "a"}, afresh=True).trials
    TrialTable(tmp_path, {"images": 4, "measure": "a"}).add([trial(1, 0.5)])
    (tmp_path / "setup.json").write_text("{")
    with pytest.raises(ValueError, match=r"setup.json: cannot be read"):
        TrialTable(tmp_path, {"images": 4, "measure": "a"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("round,", "turn,", "the first line must be round,gaussian_weight,"),
        ("0,3.0,", "0,wide,", "line 2 must hold 9 numbers; got 0,wide,"),
        (",0.75", "", "line 2 must hold 9 numbers"),
    ],
)
def test_a_damaged_table_is_explained(old: str, new: str, message: str, tmp_path: Path) -> None:
    TrialTable(tmp_path, {}).add([trial(1, 0.5)])
    path = tmp_path / "table.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        TrialTable(tmp_path, {})


def test_a_table_in_another_encoding_is_explained(tmp_path: Path) -> None:
    TrialTable(tmp_path, {}).add([trial(1, 0.5)])
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"table\.csv: cannot be read as a table .*--overwrite begins afresh"):
        TrialTable(tmp_path, {})


def test_the_plot_shows_each_pair_of_what_varied() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    trials = [trial(w, w / 10 + x / 1000, bilateral_sxy=x) for w in (1.0, 2.0) for x in (30.0, 40.0, 50.0)]
    figure = plot_trials(trials)
    assert figure is not None
    cells = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(cells, [[13, 14, 15], [23, 24, 25]])
    worse = [trial(2.0, 0.01, bilateral_sxy=30.0, bilateral_srgb=5.0)]
    figure = plot_trials([*trials, *worse])
    assert figure is not None
    assert figure.axes[0].images[0].get_array()[1, 0] == pytest.approx(23)  # the best of the cell, not the last
    more = [*trials, *(trial(w, 0.9, bilateral_srgb=5.0) for w in (1.0, 3.0))]
    figure = plot_trials(more)
    assert figure is not None
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(drawn) >= 3
    assert drawn[0].shape == (3, 3)
    assert np.isnan(np.ma.filled(drawn[0], np.nan)).sum() == 2  # weight 3 was tried at one width
    assert plot_trials(trials[:1]) is None
