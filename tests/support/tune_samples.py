"""Images with saved scores for tests of tuning: edges in the images, and scores that are coarse, unsure and wrong in places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from dataset_files import CLASSES, write_folder

from deeplab_crf.data.datasets import SegmentationFolder, open_dataset
from deeplab_crf.evaluation.saved_scores import write_saved_scores

SIZE = (40, 48)
PADDED = (41, 49)


def write_tuning(root: Path, count: int = 4, noise: float = 1.0, classes: int = len(CLASSES)) -> Path:
    """A data set "folder" with the split train, and its scores in ``root / "scores"``."""
    write_folder(root, train=count, val=1, size=SIZE)
    dataset = open_dataset("folder", root, "train")
    rng = np.random.default_rng(5)
    for i in range(count):
        example = dataset[i]
        labels = np.pad(np.where(example.labels == 255, 0, example.labels), ((0, 1), (0, 1)), mode="edge")
        coarse = np.eye(classes)[labels[::8, ::8]].transpose(2, 0, 1)
        scores = 2.5 * coarse + rng.normal(0, noise, coarse.shape)
        write_saved_scores(root / "scores" / f"{example.name}.npz", scores, PADDED)
    return root


def opened(root: Path) -> SegmentationFolder:
    """The data set that `write_tuning` wrote."""
    return open_dataset("folder", root, "train")


@contextmanager
def no_bar(title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Make an invisible progress bar whose steps must add up to ``steps``."""
    told = []
    yield told.append
    assert sum(told) == steps, title


@contextmanager
def loose_bar(title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Make a progress bar that may end early."""
    yield lambda _count: None
