"""Whether labels say enough to learn from or to measure with: how many pixels each class has. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.datasets import IGNORE, SegmentationFolder

SHOWN = 5  # names in a message, of classes or files


def count_pixels(
    dataset: SegmentationFolder, indices: Iterable[int] | None = None, *, enough: int | None = None
) -> NDArray[np.int64]:
    """Pixels of each label value, 255 last: ``(256,)``, of all images or of ``indices``.

    enough: ends as soon as so many classes have a pixel, since most data sets show all of theirs in a few dozen images; None: all
    are counted. Raises ValueError that names the file where one cannot be read or holds other values.
    """
    counts = np.zeros(IGNORE + 1, np.int64)
    for i in range(len(dataset)) if indices is None else indices:
        counts += np.bincount(dataset.read_labels(i).ravel(), minlength=len(counts))
        if enough is not None and np.count_nonzero(counts[:IGNORE]) >= enough:
            break
    return counts


def check_two_classes(dataset: SegmentationFolder, name: str, counts: NDArray[np.int64], purpose: str) -> None:
    """Raises ValueError unless two classes at least have pixels among ``counts``, of `count_pixels`: one class alone is always
    right. name: what the images are called. purpose: "learnt" or "measured"."""
    present = np.flatnonzero(counts[:IGNORE])
    if len(present) >= 2:
        return
    folder = dataset.items[0].labels.parent
    void, absent = counts[IGNORE], absent_classes(dataset.classes, counts)
    if not len(present):
        files = shortened([item.labels.name for item in dataset.items])
        what = f"the labels hold no pixel of any class, {IGNORE} (unlabelled) alone ({files})"
    else:
        what = f"{dataset.classes[present[0]]} ({present[0]}) is the only class with pixels in the labels"
        what += f", there is none of {absent}" if absent else ""
    remedy = f". {IGNORE} means unlabelled pixels, {void / counts.sum():.1%} of them" if void else ""
    missing = np.flatnonzero(counts[: len(dataset.classes)] == 0)
    if void and len(present) and len(missing):
        example = f"{dataset.classes[missing[0]]} say, give --map-labels {IGNORE}={missing[0]}"
        remedy += f"; if it is a class of yours, {example}"
    raise ValueError(f"{folder}: nothing can be {purpose} on {name}: {what}{remedy}")


def absent_classes(classes: Sequence[str], counts: NDArray[np.int64]) -> str:
    """The names of the classes without a pixel, with their ids; empty where all have one."""
    return shortened([f"{name} ({i})" for i, name in enumerate(classes) if not counts[i]])


def shortened(names: Sequence[str]) -> str:
    """``names`` with commas between them, the first few of many."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
