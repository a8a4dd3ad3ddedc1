"""The layer's benchmark and the learning example: engines that compute the same, wrong results caught, tables and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cases, layer, layer_engines, learn_crf, memory, results
from benchmarks.engines import Inputs

TINY = cases.Case(44, 33, 5, 3, (3, 3), (80, 13, 10))


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def inputs() -> Inputs:
    return Inputs(cases.load_image(cases.SYNTHETIC, TINY.width, TINY.height), cases.network_unary(TINY))


def test_engines_agree(inputs: Inputs) -> None:
    forward = layer.compare(TINY, inputs, layer.FORWARD, 1)
    assert set(forward) == set(layer.FORWARD[1:])
    assert max(forward.values()) < 1e-5
    training = layer.compare(TINY, inputs, layer.TRAINING[1:], 1)
    implicit = training.pop(layer_engines.IMPLICIT)
    assert max(training.values()) < 1e-5 < implicit
    assert layer.compare(TINY, inputs, (layer_engines.CALLS, layer_engines.BATCH), 2) == {layer_engines.BATCH: 0.0}


def test_training_engines_give_gradients(inputs: Inputs) -> None:
    """Of the logits, and of what the engine is named after."""
    result = layer_engines.find_engine(layer_engines.TRAIN_ALL).run(TINY, inputs).result
    assert result.shape == (TINY.labels, TINY.points)
    assert np.abs(result).max() > 0
    options = layer_engines._TRAINING[layer_engines.TRAIN_ALL]
    assert {name for name, _ in layer_engines.make_layer(TINY, **options).named_parameters()} == {
        "weights",
        "log_sxy",
        "log_srgb",
    }


def test_a_batch_of_other_bits_is_bad() -> None:
    refined = torch.zeros(1, 2, 3, 4)
    other = refined.clone()
    other[0, 1, 2, 3] = 1e-30
    assert (layer_engines.digest(refined) != layer_engines.digest(other)).any()
    group = layer.Group("batch", TINY, [], {layer_engines.BATCH: 1e-9})
    assert layer.bad_results(group) == [layer_engines.BATCH]


def test_wrong_results_are_caught() -> None:
    differences = {layer_engines.TRAIN_ALL: 1e-6, layer_engines.RECOMPUTE: 1e-2, layer_engines.IMPLICIT: 0.5}
    assert layer.bad_results(layer.Group("training", TINY, [], differences)) == [layer_engines.RECOMPUTE]
    assert layer.bad_results(layer.Group("forward", TINY, [], {layer_engines.LAYER: float("nan")})) == [
        layer_engines.LAYER
    ]


def test_goals_and_tables_are_read_off_the_medians() -> None:
    def timing(name: str, threads: int, seconds: float) -> results.Timing:
        return results.Timing(name, threads, total=[seconds, 9 * seconds, seconds / 9])

    forward = [timing(name, 1, seconds) for name, seconds in zip(layer.FORWARD, (0.1, 0.11, 0.33), strict=True)]
    training = [timing(name, 2, 0.1 * number) for number, name in enumerate(layer.TRAINING, 1)]
    batch = [
        timing(layer_engines.CALLS, 1, 0.8),
        timing(layer_engines.CALLS, 2, 0.6),
        timing(layer_engines.BATCH, 2, 0.5),
    ]
    groups = [
        layer.Group(name, TINY, each) for name, each in (("forward", forward), ("training", training), ("batch", batch))
    ]
    lines = layer.goals(groups)
    assert lines[0].endswith("1.10x, wanted 1.15x: reached")
    assert [line.split(": ")[-1] for line in lines] == ["reached"] * 3 + ["MISSED"] * 2
    assert lines[-1].endswith("1.60x, wanted 1.8x: MISSED")
    assert "| 1 thread | 100 | 110 | 1.10x | 330 | 3.00x |" in layer.forward_table(groups[0])
    assert f"| {layer_engines.TRAIN_LOGITS} | 200 | 2.00x | - |  |" in layer.training_table(groups[1])
    assert "| one call, 2 threads | 500 | 1.60x |" in layer.batch_table(groups[2])


def test_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "QUICK_CASE", TINY)
    files = [tmp_path / "layer.json", tmp_path / "layer.md"]
    arguments = [
        "--quick",
        "--image",
        cases.SYNTHETIC,
        "--threads",
        "2",
        "--json",
        str(files[0]),
        "--markdown",
        str(files[1]),
    ]
    assert layer.main(arguments) == 0
    assert capsys.readouterr().out.strip() == files[1].read_text().strip()
    data = json.loads(files[0].read_text())
    assert [group["title"] for group in data["groups"]] == ["forward", "training", "batch"]
    assert all(len(timing["total"]) == 2 for group in data["groups"] for timing in group["timings"])
    assert data["environment"]["torch"] == torch.__version__


@pytest.mark.skipif(not memory.STATUS.exists(), reason="without /proc the peak cannot be set back")
def test_memory_in_a_process_of_its_own() -> None:
    case = cases.Case(200, 150, 21, 5, (3, 3), (80, 13, 10))
    uses = {
        name: memory.measure(name, 1, case, cases.SYNTHETIC, engines="benchmarks.layer_engines")
        for name in (layer_engines.LAYER, layer_engines.TRAIN_LOGITS)
    }
    trace = 5 * case.points * case.labels * 4
    assert uses[layer_engines.TRAIN_LOGITS].rise - uses[layer_engines.LAYER].rise > 0.5 * trace


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--repeats", "0"], "--repeats: must be at least 1; got 0"), (["--image", "no.jpg"], "no such file")],
)
def test_bad_arguments(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        layer.main(options)
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------- learning
def write_images(folder: Path) -> None:
    """Five small ones in the manner of the shared data: discs on a ground, scores at an eighth of the size."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :80]
    for name in learn_crf.IMAGES:
        labels = ((rows - rng.uniform(20, 44)) ** 2 + (columns - rng.uniform(25, 55)) ** 2 < 18**2).astype(np.uint8)
        image = np.clip(90 + 80 * labels[..., None] + rng.normal(0, 8, (64, 80, 3)), 0, 255).astype(np.uint8)
        scores = 4 * np.stack([1 - labels, labels])[:, 4::8, 4::8] + rng.normal(0, 0.8, (2, 8, 10))
        labels[:2] = learn_crf.IGNORE
        Image.fromarray(image).save(folder / f"camvid_{name}.png")
        Image.fromarray(labels).save(folder / f"camvid_{name}_gt.png")
        np.savez(folder / f"camvid_{name}_netprob.npz", logits=scores.astype(np.float16))


def test_learning_on_held_back_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    write_images(tmp_path)
    files = {"json": tmp_path / "learn.json", "markdown": tmp_path / "learn.md", "plot": tmp_path / "learn.png"}
    options = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    assert learn_crf.main(["--data", str(tmp_path), "--steps", "20", *options]) == 0
    learnings = json.loads(files["json"].read_text())["learnings"]
    assert [learning["image"] for learning in learnings] == list(learn_crf.IMAGES)
    assert all(len(learning["losses"]) == 20 and len(learning["held_back"]) == 3 for learning in learnings)
    assert np.mean([learning["losses"][-4:] for learning in learnings]) < np.mean(
        [learning["losses"][:4] for learning in learnings]
    )
    assert capsys.readouterr().out.strip() == files["markdown"].read_text().strip()
    assert files["plot"].stat().st_size > 10_000


def test_soft_iou_of_certain_labels_is_the_iou() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 255, 0]]])
    found = torch.tensor([[[0, 1, 1, 1, 1, 0]]])
    refined = torch.log(torch.nn.functional.one_hot(found, 3).permute(0, 3, 1, 2) + 1e-12)
    iou = (2 / 3 + 2 / 3) / 2
    assert learn_crf.mean_iou(refined, labels) == pytest.approx(iou)
    assert learn_crf.soft_iou_loss(refined, labels).item() == pytest.approx(1 - iou, abs=1e-5)
