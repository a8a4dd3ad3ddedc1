"""The training loop: what it sees, what it repeats, what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import COMPACT, DROPOUT, FROZEN, assert_same_state, losses, make, run, stored

from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.data.transforms import Augmentation
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.models import SegmentationPipeline, Usage, build_model, load_model, save_weights
from deeplab_crf.runtime.processes import World
from deeplab_crf.training import train as loop
from deeplab_crf.training.log import COLUMNS
from deeplab_crf.training.samples import BatchNumbers, Crops
from deeplab_crf.training.settings import make_settings, read_values

pytestmark = pytest.mark.usefixtures("small_networks")


# ---------------------------------------------------------------- what it sees


def test_each_epoch_shows_every_image_once_in_an_order_of_its_own(data: Path) -> None:
    dataset = open_dataset("folder", data, "train")
    shown: list[str] = []

    class Spy:
        def __call__(self, example: Any, generator: np.random.Generator) -> Any:
            shown.append(example.name)
            return generator.random()

    crops = Crops(dataset, Spy(), seed=3)
    draws = [crops[n] for n in range(20)]
    epochs = [tuple(shown[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [item.name for item in dataset.items] for epoch in epochs)
    assert len(set(epochs)) > 1
    assert len(set(draws)) == 20
    assert [crops[n] for n in (13, 2)] == [draws[13], draws[2]]  # whatever was asked before
    assert [Crops(dataset, Spy(), seed=4)[n] for n in range(20)] != draws


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_processes_and_parts_share_each_batch_out(processes: int, parts: int, data: Path) -> None:
    settings = make(data, batch=12, accumulate=parts, iterations=4)
    shares = [list(BatchNumbers(settings, World(rank, processes, torch.device("cpu")), 1)) for rank in range(processes)]
    for iteration in range(3):
        seen = [n for share in shares for part in share[iteration * parts : (iteration + 1) * parts] for n in part]
        assert sorted(seen) == list(range(12 * (iteration + 1), 12 * (iteration + 2)))
    assert all(len(share) == 3 * parts for share in shares)


def test_crops_are_augmented_examples(data: Path) -> None:
    crops = Crops(open_dataset("folder", data, "train"), Augmentation(33, (0.5, 1.0)), seed=0)
    image, labels = crops[7]
    assert image.shape == (3, 33, 33)
    assert set(labels.unique().tolist()) <= {0, 1, 2, 255}


# ---------------------------------------------------------------- what it repeats


@pytest.mark.parametrize("model", [COMPACT, DROPOUT])
def test_the_same_settings_give_the_same_weights(model: str, data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(make(data, model=model, seed=seed, colour=0.2), tmp_path / name)
        torch.rand(3)  # what others draw between does not show
    assert_same_state(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_state(tmp_path / "a", tmp_path / "c")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's, where there is but one core
def test_processes_that_read_data_do_not_show(data: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        run(make(data, workers=workers, colour=0.3, iterations=4), tmp_path / str(workers))
    assert_same_state(tmp_path / "0", tmp_path / "2")


def test_parts_give_the_batch_s_losses(data: Path, tmp_path: Path) -> None:
    """With frozen batch norm, which is what statistics of a part would change."""
    found = [
        run(make(data, model=FROZEN, accumulate=parts, learning_rate=1e-4), tmp_path / str(parts))
        for parts in (1, 2, 4)
    ]
    assert losses(found[1]) == pytest.approx(losses(found[0]), rel=1e-5)
    assert losses(found[2]) == pytest.approx(losses(found[0]), rel=1e-5)
    assert losses(found[0])[0] != losses(found[0])[1]


# ---------------------------------------------------------------- what it does


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_it_learns(amp: str, data: Path, tmp_path: Path) -> None:
    outcome = run(
        make(data, iterations=60, learning_rate=0.05, scales=(1.0,), amp=amp, checkpoint_every=60), tmp_path / "out"
    )
    assert np.mean(losses(outcome)[-5:]) < 0.75 * losses(outcome)[0]


def test_learning_rates_and_class_weights_reach_the_loop(data: Path, tmp_path: Path) -> None:
    step = run(make(data, policy="step", step=2), tmp_path / "step")
    assert [row.learning_rate for row in step.rows] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    balanced = run(make(data, policy="step", step=2, class_weights="balanced"), tmp_path / "balanced")
    assert losses(balanced)[0] != losses(step)[0]
    assert losses(balanced)[0] == pytest.approx(losses(step)[0], rel=0.2)


def test_the_average_is_what_is_validated_and_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After iteration n: d a + (1 - d) w with d = min(average, (1 + n) / (10 + n)), the first of them the weights."""
    seen: list[dict[str, torch.Tensor]] = []
    validated: list[dict[str, torch.Tensor]] = []
    descend, validate = loop.Training._descend, loop.validate

    def watched(self: loop.Training, *arguments: Any) -> float:
        value = descend(self, *arguments)
        seen.append({name: weight.detach().clone() for name, weight in self.network.state_dict().items()})
        return value

    def watched_validation(network: Any, *arguments: Any) -> Any:
        validated.append({name: weight.clone() for name, weight in network.state_dict().items()})
        return validate(network, *arguments)

    monkeypatch.setattr(loop.Training, "_descend", watched)
    monkeypatch.setattr(loop, "validate", watched_validation)
    run(make(data, average=0.2, val_split="val"), tmp_path / "out")
    saved = load_model(tmp_path / "out" / "weights.safetensors")[0].state_dict()
    moved = 0
    for name, weight in seen[0].items():
        if name.endswith("num_batches_tracked"):  # is not saved
            continue
        expected = weight.double()
        if "running" not in name:
            for n, now in enumerate(seen[1:], start=1):
                decay = min(0.2, (1 + n) / (10 + n))
                expected = decay * expected + (1 - decay) * now[name].double()
            moved += not torch.equal(seen[-1][name], saved[name])
        else:  # statistics are the network's
            expected = seen[-1][name].double()
        torch.testing.assert_close(saved[name].double(), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(saved[name], validated[-1][name])
    assert moved > 5
    from_checkpoint = load_model(tmp_path / "out" / "checkpoint.pt", COMPACT)[0].state_dict()
    assert all(torch.equal(from_checkpoint[name], weight) for name, weight in saved.items() if "num_b" not in name)


def test_validation_is_the_pipeline_s_without_crf(data: Path, tmp_path: Path) -> None:
    outcome = run(make(data, val_split="val", validate_every=4), tmp_path / "out")
    assert [row.iteration for row in outcome.rows if row.mean_iou is not None] == [4, 6]
    pipeline = SegmentationPipeline(load_model(tmp_path / "out" / "weights.safetensors")[0], None, pad_to=1)
    matrix = ConfusionMatrix(3)
    for example in open_dataset("folder", data, "val"):
        matrix.add(pipeline.predict(example.image)[0].labels.numpy(), example.labels)
    assert outcome.rows[-1].mean_iou == matrix.mean_iou
    assert outcome.rows[-1].pixel_accuracy == matrix.pixel_accuracy
    run(make(data), tmp_path / "unseen")
    assert_same_state(tmp_path / "out", tmp_path / "unseen")  # looking changes nothing


def test_the_longer_side_is_validated_and_travels_with_the_weights(data: Path, tmp_path: Path) -> None:
    settings = make(data, val_split="train", longer_side=40, iterations=1)
    outcome = run(settings, tmp_path)
    network, _ = load_model(tmp_path / "weights.safetensors")
    dataset = open_dataset("folder", data, "train")
    assert network.usage == Usage(dataset.classes, 40)
    matrix = ConfusionMatrix(len(dataset.classes))
    for example in dataset:
        (found,) = SegmentationPipeline(network, None, longer_side=40, pad_to=1).predict(example.image)
        matrix.add(found.labels.numpy(), example.labels)
    assert outcome.rows[-1].mean_iou == pytest.approx(matrix.mean_iou)


def test_what_is_left_behind(data: Path, tmp_path: Path) -> None:
    settings, out = make(data, val_split="val"), tmp_path / "new" / "out"
    outcome = run(settings, out)
    assert (outcome.iteration, outcome.finished) == (6, True)
    names = {path.name for path in out.iterdir()}
    assert names == {"checkpoint.pt", "curves.png", "log.csv", "settings.toml", "weights.safetensors"}
    assert make_settings(read_values(out / "settings.toml")) == settings
    network, _ = load_model(out / "weights.safetensors")
    assert (network.variant.name, network.num_classes) == (COMPACT, 3)
    kept = stored(out)["network"]
    assert all(
        torch.equal(value, kept[name]) for name, value in network.state_dict().items() if "num_batches" not in name
    )
    lines = (out / "log.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [int(line.split(",")[0]) for line in lines[1:]] == [1, 2, 3, 4, 5, 6]
    with Image.open(out / "curves.png") as image:
        assert image.width > 500


def test_tensorboard_where_it_is_asked_for(data: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs TensorBoard")
    outcome = run(make(data, val_split="val", tensorboard=True), tmp_path / "out")
    events = reader.EventAccumulator(str(tmp_path / "out" / "events"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [
        (row.iteration, pytest.approx(row.loss)) for row in outcome.rows
    ]
    assert [each.step for each in events.Scalars("mean_iou")] == [6]


def test_packages_that_are_missing_are_named_before_anything_is_begun(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda name: None if name == "tensorboard" else name)
    with pytest.raises(ImportError, match="tensorboard = true needs TensorBoard: pip install tensorboard"):
        run(make(data, tensorboard=True), tmp_path / "out")
    monkeypatch.setattr(loop, "find_spec", lambda name: None if name == "safetensors" else name)
    with pytest.raises(ImportError, match=r'saving weights needs safetensors: pip install "deeplab-crf\[train\]"'):
        run(make(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_starting_weights_of_others_are_described(data: Path, tmp_path: Path) -> None:
    """What their first layer was taken for is said, and the training keeps its own way of resizing."""
    start = build_model(COMPACT, 3)
    ours = {f"model.{name}": value for name, value in start.state_dict().items() if name.startswith("backbone.")}
    ours["model.backbone.bn1.running_var"] = torch.full_like(ours["model.backbone.bn1.running_var"], 1e4)
    torch.save(ours, tmp_path / "start.pth")
    said: list[str] = []
    run(make(data, init=str(tmp_path / "start.pth"), iterations=1), tmp_path / "out", note=said.append)
    (text,) = [text for text in said if "start.pth" in text]
    assert "backbone names; its input: BGR in 0..255 minus the mean (bgr-255)" in text


def test_weights_to_start_from(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    start = build_model(COMPACT, 3)
    save_weights(start, tmp_path / "start.safetensors")
    settings = {"init": str(tmp_path / "start.safetensors"), "learning_rate": 1e-12, "weight_decay": 0, "iterations": 1}
    run(make(data, **settings), tmp_path / "out")
    for name, value in start.named_parameters():
        torch.testing.assert_close(stored(tmp_path / "out")["network"][name], value.detach())
    save_weights(build_model(COMPACT, 7), tmp_path / "start.safetensors")
    with pytest.raises(ValueError, match=r"has 7 classes and the model 3.*--new-classifier"):
        run(make(data, **settings), tmp_path / "other")
    run(make(data, **settings, new_classifier=True), tmp_path / "other")
