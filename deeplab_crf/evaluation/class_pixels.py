"""The pixels of each class in a data set, and whether they suffice. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.datasets import IGNORE, SegmentationFolder

SHOWN = 5  # names in a message, of classes or files


def count_pixels(
    dataset: SegmentationFolder, indices: Iterable[int] | None = None, *, enough: int | None = None
) -> NDArray[np.int64]:
    """Count the pixels of each label value.

    Args:
        dataset: The label images.
        indices: Which of them; None: all.
        enough: Stop as soon as this many classes have a pixel, since a few dozen images of most
            data sets show all classes; None: count all.

    Returns:
        Counts, int64 ``(256,)``; the last one is that of unlabelled pixels.

    Raises:
        ValueError: A file cannot be read or holds other values.
    """
    counts = np.zeros(IGNORE + 1, np.int64)
    for i in range(len(dataset)) if indices is None else indices:
        counts += np.bincount(dataset.read_labels(i).ravel(), minlength=len(counts))
        if enough is not None and np.count_nonzero(counts[:IGNORE]) >= enough:
            break
    return counts


def check_two_classes(dataset: SegmentationFolder, name: str, counts: NDArray[np.int64], purpose: str) -> None:
    """Check that at least two classes have pixels, since one class alone is always right.

    Args:
        dataset: The label images.
        name: What the error calls them.
        counts: Their `count_pixels`.
        purpose: "learnt" or "measured".

    Raises:
        ValueError: Fewer than two classes have pixels.
    """
    present = np.flatnonzero(counts[:IGNORE])
    if len(present) >= 2:
        return
    folder = dataset.items[0].labels.parent
    void, absent = counts[IGNORE], absent_classes(dataset.classes, counts)
    if not len(present):
        files = shortened([item.labels.name for item in dataset.items])
        problem = f"the labels hold no pixel of any class, {IGNORE} (unlabelled) alone ({files})"
    else:
        problem = f"{dataset.classes[present[0]]} ({present[0]}) is the only class with pixels in the labels"
        problem += f", there is none of {absent}" if absent else ""
    hint = f". {IGNORE} means unlabelled pixels, {void / counts.sum():.1%} of them" if void else ""
    missing = np.flatnonzero(counts[: len(dataset.classes)] == 0)
    if void and len(present) and len(missing):
        example = f"{dataset.classes[missing[0]]} say, give --map-labels {IGNORE}={missing[0]}"
        hint += f"; if it is a class of yours, {example}"
    raise ValueError(f"{folder}: nothing can be {purpose} on {name}: {problem}{hint}")


def absent_classes(classes: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Return names and ids of the classes without a pixel, as text."""
    return shortened([f"{name} ({i})" for i, name in enumerate(classes) if not counts[i]])


def shortened(names: Sequence[str]) -> str:
    """Join ``names`` with commas, only the first few of many."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
