"""Evaluation against the pipeline image by image; scores saved and read; errors; two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import CLASSES, write_folder
from model_samples import small_model
from PIL import Image

from deeplab_crf import Bilateral, DenseCRF, Gaussian
from deeplab_crf.data.datasets import SegmentationFolder, open_dataset
from deeplab_crf.evaluation.evaluate import (
    STAGES,
    FileScores,
    NetworkScores,
    ScoreReading,
    Task,
    evaluate,
    predict,
)
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.evaluation.saved_scores import write_saved_scores
from deeplab_crf.models import SegmentationPipeline, Usage

COUNT, SIZE = 5, (40, 48)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), train=1, val=COUNT, size=SIZE)


@pytest.fixture
def dataset(root: Path) -> SegmentationFolder:
    return open_dataset("folder", root, "val")


def small_pipeline(name: str = "v2-compact-aspp", **options: Any) -> SegmentationPipeline:
    crf = DenseCRF(len(CLASSES), (Gaussian(2, 1), Bilateral(9, 20, 3)), 3)
    return SegmentationPipeline(small_model(name, len(CLASSES)), crf, pad_to=1, **options).eval()


def network_task(dataset: SegmentationFolder, save_to: Path | None = None, **options: Any) -> Task:
    pipeline = small_pipeline()
    return Task(dataset, NetworkScores(pipeline, save_to), pipeline.crf, **options)


def test_it_scores_what_the_pipeline_predicts(dataset: SegmentationFolder) -> None:
    pipeline = small_pipeline(min_probability=0.01)
    before, after = ConfusionMatrix(len(CLASSES)), ConfusionMatrix(len(CLASSES))
    per_image = []
    for i in range(COUNT):
        (result,) = pipeline.predict(dataset[i].image)
        before.add(result.network_labels, dataset[i].labels)
        after.add(result.labels, dataset[i].labels)
        one = ConfusionMatrix(len(CLASSES))
        one.add(result.labels, dataset[i].labels)
        per_image.append(one.pixel_accuracy)
    assert (before.matrix != after.matrix).any()
    evaluation = evaluate(Task(dataset, NetworkScores(pipeline), pipeline.crf, 0.01), workers=2)
    np.testing.assert_array_equal(evaluation.network.whole.matrix, before.matrix)
    assert evaluation.crf is not None
    np.testing.assert_array_equal(evaluation.crf.whole.matrix, after.matrix)
    assert [image.name for image in evaluation.images] == [f"val{i}" for i in range(COUNT)]
    assert [image.pixel_accuracy[1] for image in evaluation.images] == per_image
    assert all(tuple(image.seconds) == STAGES for image in evaluation.images)
    assert evaluation.seconds > 0


def test_workers_and_threads_change_nothing(dataset: SegmentationFolder) -> None:
    task, before = network_task(dataset), torch.get_num_threads()
    want = evaluate(task)
    for workers, threads in ((3, 1), (1, 2), (8, 1)):
        got = evaluate(task, workers=workers, threads=threads)
        np.testing.assert_array_equal(got.network.counts, want.network.counts)
        np.testing.assert_array_equal(got.crf.counts, want.crf.counts)
        assert [image.name for image in got.images] == [image.name for image in want.images]
    assert torch.get_num_threads() == before


def test_without_crf(dataset: SegmentationFolder) -> None:
    task = Task(dataset, NetworkScores(small_pipeline()))
    evaluation = evaluate(task, [1, 3])
    assert evaluation.crf is None
    assert [(image.index, image.pixel_accuracy[1], image.gain) for image in evaluation.images] == [
        (1, None, 0.0),
        (3, None, 0.0),
    ]


@pytest.mark.parametrize("name", ["v2-compact-aspp", "v2-resnet50-aspp", "v1-vgg16-msc"])
@torch.no_grad()
def test_saved_scores_are_the_networks(dataset: SegmentationFolder, tmp_path: Path, name: str) -> None:
    """Through a file of float16 at output stride 8 (MSc 1): the logits are the network's within float16's rounding."""
    pipeline = small_pipeline(name)
    network = NetworkScores(pipeline, tmp_path)
    direct = [network.logits(dataset[i]) for i in range(COUNT)]
    read = FileScores(dataset, tmp_path)
    for i, want in enumerate(direct):
        got = read.logits(dataset[i])
        assert got.shape == (len(CLASSES), *SIZE)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    image = torch.from_numpy(dataset[0].image).permute(2, 0, 1)[None]
    plain = pipeline.network.scores(pipeline.preprocess(image))  # before upsampling, by the network's own account
    with np.load(tmp_path / "val0.npz") as stored:
        assert tuple(stored["size"]) == plain.size
        assert stored["scores"].shape == plain.fused.shape[1:]
        torch.testing.assert_close(torch.from_numpy(stored["scores"]).float(), plain.fused[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_saved_scores_without_aligned_corners(dataset: SegmentationFolder, tmp_path: Path) -> None:
    """Scores are saved for every pixel, since upsampling mixes those at the output stride."""
    pipeline = small_pipeline("v2-resnet50-aspp")
    pipeline.network.usage = Usage(align_corners=False)
    pipeline.pad_to = 1
    network = NetworkScores(pipeline, tmp_path)
    want = [network.logits(dataset[i]) for i in range(COUNT)]
    torch.testing.assert_close(FileScores(dataset, tmp_path).logits(dataset[0]), want[0], rtol=1e-3, atol=1e-3)


def test_scores_of_others(dataset: SegmentationFolder, tmp_path: Path) -> None:
    """Probabilities, energies and logits of the full size say the same."""
    rng = np.random.default_rng(0)
    logits = {item.name: rng.normal(size=(3, *SIZE)).astype(np.float32) for item in dataset.items}
    kinds = {
        "logits": lambda values: values,
        "probabilities": lambda values: np.exp(values) / np.exp(values).sum(0),
        "unary": lambda values: -values,
    }
    matrices = []
    for kind, convert in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        for name, values in logits.items():
            np.save(folder / f"{name}.npy", convert(values))
        task = Task(dataset, FileScores(dataset, folder, ScoreReading(kind)), small_pipeline().crf)
        evaluation = evaluate(task)
        matrices.append((evaluation.network.counts, evaluation.crf.counts))
    want = ConfusionMatrix(3)
    for i, item in enumerate(dataset.items):
        want.add(logits[item.name].argmax(0), dataset[i].labels)
    for network, crf in matrices:
        np.testing.assert_array_equal(network.sum(axis=0), want.matrix)
        assert np.abs(crf - matrices[0][1]).sum() <= 4  # exp, log and back: a pixel on the fence may fall


def test_scores_that_do_not_fit_are_named(dataset: SegmentationFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        FileScores(dataset, tmp_path / "nowhere")
    for name in ("val0", "val2", "val3", "val4"):
        write_saved_scores(tmp_path / f"{name}.npz", np.zeros((3, 6, 7)), (41, 49))
    with pytest.raises(ValueError, match=r"no scores \(\.npz or \.npy\) of 1 of 5 images: val1"):
        FileScores(dataset, tmp_path)
    write_saved_scores(tmp_path / "val1.npz", np.zeros((3, 6, 7)), (41, 49))
    source = FileScores(dataset, tmp_path, ScoreReading("logits"))
    for message, scores, size in (
        ("scores must have the data set's 3 classes; got 2", np.zeros((2, 6, 7)), (41, 49)),
        ("scores are of an image of 33 x 49", np.zeros((3, 5, 7)), (33, 49)),
    ):
        write_saved_scores(tmp_path / "val1.npz", scores, size)
        with pytest.raises(ValueError, match=f"val1.npz: {message}"):
            evaluate(Task(dataset, source), workers=2)
    for message, array in (
        ("the data set's 3 classes; got 4", np.zeros((4, *SIZE))),
        ("coarser in the same proportion", np.zeros((3, 7, 40))),
    ):
        np.savez(tmp_path / "val1.npz", logits=array)
        with pytest.raises(ValueError, match=rf"val1.npz: .*{message}"):
            evaluate(Task(dataset, source))
    np.savez(tmp_path / "val1.npz", labels=np.zeros(SIZE, int))
    with pytest.raises(ValueError, match=r"val1.npz: holds labels; scores of each class are needed"):
        evaluate(Task(dataset, FileScores(dataset, tmp_path)))
    with pytest.raises(ValueError, match="kind must be one of logits, probabilities, unary; got 'softmax'"):
        ScoreReading("softmax")


def test_the_first_bad_file_ends_it_at_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, val=12, size=SIZE)
    labels = root / "labels" / "val"
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(labels / "val1.png")
    dataset, seen = open_dataset("folder", root, "val"), []

    class Watched:
        def logits(self, example: Any) -> Any:
            seen.append(example.name)
            return torch.zeros(3, *SIZE)

    with pytest.raises(ValueError, match=r"val1\.png: label values must be 0\.\.2 or 255 \(void\); got 7"):
        evaluate(Task(dataset, Watched()))
    assert len(seen) <= 4  # of 12: what was under way
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(labels / "val1.png")
    with pytest.raises(ValueError, match=r"val1\.png: labels must have the size of"):
        evaluate(Task(dataset, Watched()))


def test_an_error_without_a_name_gets_the_files(dataset: SegmentationFolder) -> None:
    class Broken:
        def logits(self, example: Any) -> Any:
            return torch.full((3, *SIZE), float("nan"))

    with pytest.raises(ValueError, match=r"val0\.png: .*finite"):
        evaluate(Task(dataset, Broken(), small_pipeline().crf))


def test_a_pipeline_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="pipeline must be in evaluation mode"):
        NetworkScores(small_pipeline().train())


def test_one_image_again(dataset: SegmentationFolder) -> None:
    pipeline = small_pipeline()
    prediction = predict(Task(dataset, NetworkScores(pipeline), pipeline.crf), 2)
    (want,) = pipeline.predict(dataset[2].image)
    np.testing.assert_array_equal(prediction.network, want.network_labels)
    np.testing.assert_array_equal(prediction.crf, want.labels)


SHARE = """
import sys
from pathlib import Path
import numpy as np
import torch
from deeplab_crf import DenseCRF, Gaussian
from deeplab_crf.data.datasets import open_dataset
from deeplab_crf.runtime.processes import join_world
from deeplab_crf.evaluation.evaluate import FileScores, Task, evaluate_share
torch.set_num_threads(1)
dataset = open_dataset("folder", Path(sys.argv[1]), "val")
task = Task(dataset, FileScores(dataset, Path(sys.argv[2])), DenseCRF(3, (Gaussian(2, 1),), 2))
world = join_world("cpu")
whole = evaluate_share(task, world)
assert (world.size, world.local_size) == (2, 2)
if world.is_main:
    names = np.array([image.name for image in whole.images])
    np.savez(sys.argv[3], network=whole.network.counts, crf=whole.crf.counts, names=names)
"""


def test_two_processes_find_the_same_matrix(dataset: SegmentationFolder, root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for item in dataset.items:
        write_saved_scores(tmp_path / "scores" / f"{item.name}.npz", rng.normal(size=(3, 6, 7)), (41, 49))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    out = tmp_path / "whole.npz"
    command = [sys.executable, "-c", SHARE, str(root), str(tmp_path / "scores"), str(out)]
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **here, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    want = evaluate(Task(dataset, FileScores(dataset, tmp_path / "scores"), DenseCRF(3, (Gaussian(2, 1),), 2)))
    with np.load(out) as whole:
        np.testing.assert_array_equal(whole["network"], want.network.counts)
        np.testing.assert_array_equal(whole["crf"], want.crf.counts)
        assert whole["names"].tolist() == [image.name for image in want.images]
