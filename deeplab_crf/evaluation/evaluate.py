"""Evaluation of a network, or of saved scores, on a data set before and after the CRF.

`SegmentationFolder` reads an image, a `ScoreSource` gives its logits, `refine_logits` runs the CRF,
and `TrimapScores` counts. Images are processed side by side by a pool of threads, each with its
share of the cores. torch and our compute kernels release the GIL, so the network of one image runs
beside the CRF of another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.core.scores import label_costs
from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.data.datasets import Example, SegmentationFolder
from deeplab_crf.data.results import ResultFolder, check_same_settings, score_jobs
from deeplab_crf.data.scores import KINDS, fit_to_image, read_scores
from deeplab_crf.evaluation.saved_scores import read_saved_scores, write_saved_scores
from deeplab_crf.evaluation.trimap import TrimapScores, band_widths
from deeplab_crf.models.images import as_images
from deeplab_crf.models.interp import image_scores
from deeplab_crf.models.pipeline import SegmentationPipeline, refine_logits
from deeplab_crf.runtime.checks import choice
from deeplab_crf.runtime.files import ARRAY_SUFFIXES, LABEL_SUFFIXES, matching_name, score_files
from deeplab_crf.runtime.processes import World

OUTPUT_STRIDE = 8
SMALLEST_PROBABILITY = 1e-5  # as `deeplab_crf.dense_crf` reads probabilities
STAGES = ("read", "scores", "crf", "count")


class ScoreSource(Protocol):
    """The source of an image's scores. Several threads call it at once."""

    def logits(self, example: Example) -> Tensor:
        """Return float32 ``(C, H, W)`` at the image's size, on the device that runs the CRF."""


class NetworkScores:
    """The scores of a network, as `SegmentationPipeline.predict` computes them.

    Args:
        pipeline: The network, in evaluation mode.
        save_to: A folder for NAME.npz (see `deeplab_crf.evaluation.saved_scores`), or None.
    """

    def __init__(self, pipeline: SegmentationPipeline, save_to: Path | None = None) -> None:
        if pipeline.training:
            raise ValueError("pipeline must be in evaluation mode; got one in training mode. Call .eval()")
        self.pipeline, self.save_to = pipeline, save_to
        _ = pipeline.inference_network  # made here, once, not by each thread

    def logits(self, example: Example) -> Tensor:
        """See `ScoreSource`."""
        (image,) = as_images(example.image)
        size, seen = self.pipeline.padded_size(image), self.pipeline.seen_size(image)
        (padded,) = self.pipeline.padded_logits([image], size)
        if self.save_to is not None:
            network = self.pipeline.network
            strided = (
                network.msc is None and network.usage.align_corners
            )  # else upsampling mixes every score with others
            stride = OUTPUT_STRIDE if strided else 1
            scores = padded[:, ::stride, ::stride].cpu().numpy()
            write_saved_scores(self.save_to / f"{example.name}.npz", scores, size, seen)
        return image_scores(padded[None], size, seen, (image.shape[-2], image.shape[-1]))[0].contiguous()


class RecordedScores:
    """Scores of a network that are saved, each with a record of its inputs.

    Args:
        source: Saves its scores in the folder of ``results``.
        dataset: The images.
        results: The folder, with the settings of the network.
    """

    def __init__(self, source: NetworkScores, dataset: SegmentationFolder, results: ResultFolder) -> None:
        self.source, self.results = source, results
        self.jobs = score_jobs(dataset, results.folder)

    def logits(self, example: Example) -> Tensor:
        """See `ScoreSource`."""
        with self.results.making(self.jobs[example.name]):
            return self.source.logits(example)


@dataclass(frozen=True)
class ScoreReading:
    """How to read scores that other programs saved; see `read_scores` and `fit_to_image`.

    Args:
        kind: What the scores are; None: as the file tells.
        key: The array of an .npz file.
        align_corners: Whether corner samples of coarse scores meet corner pixels.
        cam_background: The background of class activation maps.
        confidence: The probability of each label of predicted label maps.
    """

    kind: str | None = None
    key: str | None = None
    align_corners: bool = False
    cam_background: str | None = None
    confidence: float = 0.7

    def __post_init__(self) -> None:
        if self.kind is not None:
            choice(self.kind, KINDS, "kind")


class FileScores:
    """Scores from a folder, one .npz or .npy with the stem of each image.

    These are those that `NetworkScores` saved, or those of other programs. A folder without arrays
    holds predicted label maps, which are read as the data set's labels.

    Args:
        dataset: The images.
        folder: The folder of scores.
        reading: How to read scores of other programs.
        device: The device of the logits.

    Raises:
        ValueError: Images have no scores; the error names them.
    """

    def __init__(
        self,
        dataset: SegmentationFolder,
        folder: Path,
        reading: ScoreReading | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        self.num_classes, self.reading, self.device = len(dataset.classes), reading or ScoreReading(), device
        self.coding = dataset.coding
        found = score_files(folder)
        missing = [item.name for item in dataset.items if matching_name(item.name) not in found]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            kinds = (
                "label maps"
                if found and next(iter(found.values())).suffix in LABEL_SUFFIXES
                else "scores (.npz or .npy)"
            )
            raise ValueError(f"{folder}: no {kinds} of {len(missing)} of {len(dataset)} images: {shown}")
        self.paths = {item.name: found[matching_name(item.name)] for item in dataset.items}
        check_same_settings(folder, list(self.paths.values()))

    def logits(self, example: Example) -> Tensor:
        """See `ScoreSource`."""
        path, size = self.paths[example.name], example.labels.shape
        saved = read_saved_scores(path)
        if saved is None:
            return torch.from_numpy(self._others_logits(path, (size[0], size[1]))).to(self.device)
        self._check_classes(path, len(saved.values))
        return saved.logits((size[0], size[1]), path, self.device)

    def _others_logits(self, path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
        reading = self.reading
        scores = read_scores(
            path,
            kind=reading.kind,
            key=reading.key,
            ignore_label=None,
            image_size=size,
            coding=self.coding,
            cam_background=reading.cam_background,
        )
        ids = scores.class_ids
        if scores.kind == "labels":
            if path.suffix.lower() in ARRAY_SUFFIXES:
                raise ValueError(f"{path}: holds labels; scores of each class are needed, floats of shape (C, H, W)")
            if int(ids[-1]) >= self.num_classes:
                raise ValueError(
                    f"{path}: a predicted label map must have a class, 0..{self.num_classes - 1}, at every pixel; got {ids[-1]}"
                )
            present = _label_logits(scores.values, len(ids), reading.confidence)
        else:
            if not scores.partial:
                self._check_classes(path, len(ids))
            fitted = fit_to_image(scores, *size, align_corners=reading.align_corners, name=str(path))
            present = np.ascontiguousarray(fitted.values, dtype=np.float32)
            if scores.kind == "probabilities":
                np.log(present.clip(SMALLEST_PROBABILITY, 1), out=present)
            elif scores.kind == "unary":
                present = -present
        return self._of_all_classes(path, present, ids)

    def _of_all_classes(self, path: Path, values: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits of all classes of the data set, -inf for those without scores."""
        if np.array_equal(ids, np.arange(self.num_classes)):
            return values
        if int(ids.max()) >= self.num_classes:
            raise ValueError(
                f"{path}: scores must be of the data set's {self.num_classes} classes; got class {ids.max()}"
            )
        logits = np.full((self.num_classes, *values.shape[1:]), -np.inf, np.float32)
        logits[ids] = values
        return logits

    def _check_classes(self, path: Path, count: int) -> None:
        if count != self.num_classes:
            raise ValueError(f"{path}: scores must have the data set's {self.num_classes} classes; got {count}")


def _label_logits(labels: NDArray[Any], count: int, confidence: float) -> NDArray[np.float32]:
    """Return logits of labels; absent classes do not compete, as in ``refine``."""
    if count == 1:  # nothing to decide
        return np.zeros((1, *labels.shape), np.float32)
    own, others, _ = label_costs(count, confidence)
    logits = np.full((count, *labels.shape), -others, np.float32)
    np.put_along_axis(logits, labels[None].astype(np.int64), np.float32(-own), axis=0)
    return logits


@dataclass(frozen=True, eq=False)
class Task:
    """What is evaluated.

    Args:
        dataset: The images and labels.
        source: The scores.
        crf: The CRF; None: the network alone is scored.
        min_probability: As in `SegmentationPipeline`.
        trimap: The kind of `band_widths`.
    """

    dataset: SegmentationFolder
    source: ScoreSource
    crf: DenseCRF | None = None
    min_probability: float = 0.0
    trimap: str = "boundary"

    def new_scores(self) -> TrimapScores:
        """Return scores with nothing counted yet."""
        return TrimapScores(len(self.dataset.classes), self.trimap)


@dataclass(frozen=True)
class ImageScore:
    """The score of one image, to find examples; scores of the set are not means of these.

    Pairs hold the value of the network and that of the CRF, None without one.

    Args:
        index: The index in the data set.
        name: The image's name.
        pixel_accuracy: A pair.
        mean_iou: A pair, over the image's own classes.
        seconds: The time of each of `STAGES`.
    """

    index: int
    name: str
    pixel_accuracy: tuple[float, float | None]
    mean_iou: tuple[float, float | None]
    seconds: dict[str, float]

    @property
    def gain(self) -> float:
        """The CRF's gain in pixel accuracy; 0 without one, NaN if no pixel is scored."""
        before, after = self.pixel_accuracy
        return 0.0 if after is None else after - before


@dataclass
class Evaluation:
    """The scores of a set of images.

    Args:
        network: The counts of the network alone.
        crf: The counts of the CRF; None without one.
        images: The score of each image, in the data set's order.
        seconds: The elapsed time.
    """

    network: TrimapScores
    crf: TrimapScores | None
    images: list[ImageScore] = field(default_factory=list)
    seconds: float = 0.0

    def merge(self, other: Evaluation) -> None:
        """Add another part of the same task that ran at the same time."""
        self.network.merge(other.network)
        if self.crf is not None and other.crf is not None:
            self.crf.merge(other.crf)
        self.images = sorted([*self.images, *other.images], key=lambda image: image.index)
        self.seconds = max(self.seconds, other.seconds)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The labels of one image.

    Args:
        example: The image and its labels.
        network: uint8 ``(H, W)``, by the network alone.
        crf: uint8 ``(H, W)``; None without a CRF.
        seconds: The time of each stage so far.
    """

    example: Example
    network: NDArray[np.uint8]
    crf: NDArray[np.uint8] | None
    seconds: dict[str, float]


@torch.no_grad()
def predict(task: Task, index: int) -> Prediction:
    """Predict the labels of one image.

    Raises:
        ValueError: A file cannot be used; the error names it.
    """
    item, times = task.dataset.items[index], [time.perf_counter()]

    def lap() -> None:
        times.append(time.perf_counter())

    try:
        example = task.dataset[index]
        lap()
        logits = task.source.logits(example)
        network = top_labels(logits)
        lap()
        refined = None
        if task.crf is not None:
            image = torch.from_numpy(np.ascontiguousarray(example.image.transpose(2, 0, 1))).to(logits.device)
            refined = top_labels(refine_logits(task.crf, logits[None], image[None], task.min_probability)[0])
        lap()
    except (ValueError, TypeError) as error:
        named = any(str(path) in str(error) for path in (item.image, item.labels)) or f"{item.name}." in str(error)
        raise error if named else ValueError(f"{item.image}: {error}") from error
    seconds = dict(zip(STAGES, np.diff(times).tolist(), strict=False))
    return Prediction(example, network, refined, seconds)


def top_labels(logits: Tensor) -> NDArray[np.uint8]:
    """Return the first most probable class of each pixel of ``(C, H, W)``, uint8 ``(H, W)``."""
    if logits.is_cpu:  # NumPy takes a quarter of torch's time
        labels: NDArray[np.uint8] = logits.detach().numpy().argmax(axis=0).astype(np.uint8)
        return labels
    on_device: NDArray[np.uint8] = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return on_device


def evaluate_image(task: Task, index: int) -> Evaluation:
    """Evaluate one image; see `evaluate`."""
    prediction = predict(task, index)
    began, labels = time.perf_counter(), prediction.example.labels
    widths = band_widths(labels, task.trimap)
    network, crf = task.new_scores(), None
    network.add(prediction.network, labels, widths)
    if prediction.crf is not None:
        crf = task.new_scores()
        crf.add(prediction.crf, labels, widths)
    before, after = network.whole, None if crf is None else crf.whole
    score = ImageScore(
        index,
        prediction.example.name,
        (before.pixel_accuracy, None if after is None else after.pixel_accuracy),
        (before.mean_iou, None if after is None else after.mean_iou),
        {**prediction.seconds, "count": time.perf_counter() - began},
    )
    return Evaluation(network, crf, [score])


def evaluate(
    task: Task,
    indices: Sequence[int] | None = None,
    *,
    workers: int = 1,
    threads: int = 1,
    on_image: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score images of a data set. The first error ends it.

    The result depends on neither workers nor threads, except for the rounding of torch's
    convolutions.

    Args:
        task: What to evaluate.
        indices: Which images; None: all.
        workers: The number of images at a time.
        threads: The threads of each of them on the CPU.
        on_image: Called after each image.
    """
    began = time.perf_counter()
    total = Evaluation(task.new_scores(), None if task.crf is None else task.new_scores())
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        for part in _in_order(pool, task, range(len(task.dataset)) if indices is None else indices, 2 * workers):
            total.network.merge(part.network)
            if total.crf is not None and part.crf is not None:
                total.crf.merge(part.crf)
            total.images += part.images
            on_image()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # new threads would take the pool's
    total.seconds = time.perf_counter() - began
    return total


def _in_order(pool: ThreadPoolExecutor, task: Task, indices: Sequence[int], ahead: int) -> Iterator[Evaluation]:
    """Yield the images' parts in order, with at most ``ahead`` in progress or waiting."""
    waiting: deque[Future[Evaluation]] = deque()
    for index in indices:
        waiting.append(pool.submit(evaluate_image, task, index))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def evaluate_share(
    task: Task, world: World, *, workers: int = 1, threads: int = 1, on_image: Callable[[], None] = lambda: None
) -> Evaluation:
    """Run `evaluate` with each process on every ``world.size``-th image.

    Args:
        task: What to evaluate.
        world: The processes.
        workers: As in `evaluate`.
        threads: As in `evaluate`.
        on_image: As in `evaluate`.

    Returns:
        The scores of all images, in every process. Counts are integers, so they equal those of one
        process.
    """
    indices = range(world.rank, len(task.dataset), world.size)
    whole, *others = world.gather(evaluate(task, indices, workers=workers, threads=threads, on_image=on_image))
    for part in others:
        whole.merge(part)
    return whole
