"""The crops of a training, as one endless numbered sequence.

Crop n is number k = n mod N of epoch e = n div N. Its image and its augmentation are functions of
(seed, e, k) alone: worker processes, processes that train together and interruptions do not change
them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.data.transforms import Augmentation
from deeplab_crf.runtime.processes import World
from deeplab_crf.training.settings import TrainSettings

Batch = tuple[Tensor, Tensor]  # images (B, 3, crop, crop) and labels (B, crop, crop)


class Crops(Dataset[Batch]):
    """The sequence of crops: ``crops[n]`` is crop n, for n = 0, 1, ...

    Args:
        dataset: The images.
        augmentation: Cuts a crop from an image.
        seed: Decides the order of the images and the crops.
    """

    def __init__(self, dataset: SegmentationFolder, augmentation: Augmentation, seed: int) -> None:
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def __getitem__(self, number: int) -> Batch:
        epoch, place = divmod(number, len(self.dataset))
        example = self.dataset[int(_order(self.seed, epoch, len(self.dataset))[place])]
        return self.augmentation(example, np.random.default_rng([self.seed, epoch, 1 + place]))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


class BatchNumbers:
    """Yields the numbers of this process's crops from iteration ``start`` on.

    Each iteration has ``accumulate`` parts.
    """

    def __init__(self, settings: TrainSettings, world: World, start: int) -> None:
        self.settings, self.world, self.start = settings, world, start

    def __iter__(self) -> Iterator[list[int]]:
        settings, world = self.settings, self.world
        size = settings.batch // (settings.accumulate * world.size)
        for iteration in range(self.start, settings.iterations):
            for part in range(settings.accumulate):
                first = iteration * settings.batch + (part * world.size + world.rank) * size
                yield list(range(first, first + size))

    def __len__(self) -> int:
        return (self.settings.iterations - self.start) * self.settings.accumulate


def batches(crops: Crops, settings: TrainSettings, world: World, start: int) -> Generator[list[Batch]]:
    """Yield this process's parts of each iteration's batch.

    Args:
        crops: The sequence of crops.
        settings: The training's settings.
        world: The processes that train together.
        start: The first iteration.

    Raises:
        ChildProcessError: A worker process died. What reading raised is raised again as it was.
    """
    loader: DataLoader[Batch] = DataLoader(
        crops,
        batch_sampler=BatchNumbers(settings, world, start),
        num_workers=settings.workers,
        pin_memory=world.device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
    )
    parts = iter(loader)
    with _quiet_children():
        try:
            for _ in range(start, settings.iterations):
                yield [_next(parts, settings.workers) for _ in range(settings.accumulate)]
        finally:
            # Stop workers here: in the garbage collector, with an error's traceback that holds the
            # loader, this can take five seconds for each worker.
            getattr(parts, "_shutdown_workers", lambda: None)()


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Remove torch's SIGCHLD handler within the block.

    When a worker dies, the handler raises in the middle of whatever runs, even a change of the
    weights. Without it, torch raises where the next batch is awaited, seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _ignore_interrupts(_worker: int) -> None:
    """Leave Ctrl-C, which goes to all processes of a terminal, to the training process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _next(parts: Iterator[Any], workers: int) -> Batch:
    try:
        images, labels = next(parts)
        return images, labels
    except Exception as error:
        if workers == 0:
            raise
        raised = _from_worker(error)
    raise raised


def _from_worker(error: Exception) -> Exception:
    """Return the worker's exception without its traceback, or say that the worker died."""
    text = str(error).strip()
    if "Original Traceback" not in text:
        return ChildProcessError(
            f"a process that reads data died ({' '.join(text.split())[:200]}); it may have run out of memory: use fewer workers "
            "(0: read in the training process)"
        )
    kind, _, message = text.rsplit("\n", 1)[-1].partition(": ")
    return type(error)(message) if kind.endswith(type(error).__name__) else error
