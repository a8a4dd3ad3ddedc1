"""Accuracy near the edges of objects: the papers' trimap curves, all widths in one pass. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.datasets import IGNORE
from deeplab_crf.evaluation.metrics import ConfusionMatrix, pair_numbers
from deeplab_crf.runtime.checks import choice, whole_number

MAX_WIDTH = 40  # the papers' curves end here
KINDS = ("void", "boundary")


def band_widths(labels: NDArray[Any], kind: str, ignore: int = IGNORE) -> NDArray[np.uint8]:
    """Return the half-width w of the narrowest band that holds each pixel.

    Void pixels have a width too; they are not scored.

    Args:
        labels: ``(H, W)``.
        kind: What the bands surround. "void" is the papers' trimap for PASCAL VOC, whose objects
            have a void border: band w is the void mask dilated by a square of 2w + 1 pixels.
            "boundary" suits labels without void borders, such as CamVid's: band w is the w pixels
            on either side of a border between two classes, that is, the pixels with a neighbour
            (left, right, above, below) of another class, neither of them void, dilated by a square
            of 2(w - 1) + 1 pixels.
        ignore: The value of void pixels.

    Returns:
        uint8 ``(H, W)``, 1..`MAX_WIDTH`, or ``MAX_WIDTH + 1`` outside every band.
    """
    choice(kind, KINDS, "kind")
    if labels.ndim != 2:
        raise ValueError(f"labels must have shape (H, W); got {labels.shape}")
    void = labels == ignore
    if kind == "void":
        return np.maximum(_distances(void, MAX_WIDTH + 1), np.uint8(1))
    return _distances(_borders(labels, void), MAX_WIDTH) + np.uint8(1)


def _borders(labels: NDArray[Any], void: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the pixels with a neighbour of another class, neither of them void."""
    borders = np.zeros(labels.shape, np.bool_)
    for here, there in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        differ = (labels[here] != labels[there]) & ~(void[here] | void[there])
        borders[here] |= differ
        borders[there] |= differ
    return borders


def _distances(mask: NDArray[np.bool_], cap: int) -> NDArray[np.uint8]:
    """Return each pixel's Chebyshev distance to ``mask``, at most ``cap`` < 255.

    It is ``min over dy of max(|dy|, distance within row y + dy)``: running minima along rows, then
    ``cap`` shifts each way across rows.
    """
    along = np.minimum(_running(mask), _running(mask[:, ::-1])[:, ::-1])
    along = np.minimum(along, cap).astype(np.uint8)
    result = along.copy()
    for shift in range(1, min(cap, mask.shape[0])):
        farther = np.maximum(along, np.uint8(shift))
        np.minimum(result[:-shift], farther[shift:], out=result[:-shift])
        np.minimum(result[shift:], farther[:-shift], out=result[shift:])
    return result


def _running(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Count the columns since the last pixel of ``mask`` in the row; large where there is none."""
    columns = np.arange(mask.shape[1], dtype=np.int32)
    last = np.maximum.accumulate(np.where(mask, columns, np.int32(-(2**20))), axis=1)
    distances: NDArray[np.int32] = columns - last
    return distances


class TrimapScores:
    """The confusion matrices of all bands and of the whole images.

    ``counts`` is int64 ``(MAX_WIDTH + 1, C, C)``: ``counts[w - 1]`` counts the pixels of width w,
    ``counts[MAX_WIDTH]`` those in no band; rows and columns are those of `ConfusionMatrix`.

    Args:
        num_classes: C.
        kind: See `band_widths`.
        ignore: The label value of pixels that are not scored.
    """

    def __init__(self, num_classes: int, kind: str = "boundary", ignore: int = IGNORE) -> None:
        self.kind = choice(kind, KINDS, "kind")
        self.num_classes, self.ignore = ConfusionMatrix(num_classes).num_classes, ignore
        self.counts = np.zeros((MAX_WIDTH + 1, self.num_classes, self.num_classes), np.int64)

    def add(self, predicted: NDArray[Any], labels: NDArray[Any], widths: NDArray[np.uint8]) -> None:
        """Count one image.

        Args:
            predicted: Whole numbers ``(H, W)``.
            labels: Whole numbers ``(H, W)``.
            widths: The `band_widths` of the labels.

        Raises:
            ValueError: As `ConfusionMatrix.add`.
        """
        pairs, scored = pair_numbers(predicted, labels, self.num_classes, self.ignore)
        cells = self.num_classes**2
        numbers = (widths[scored].astype(np.intp) - 1) * cells + pairs
        self.counts += np.bincount(numbers, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: TrimapScores) -> None:
        """Add the counts of other scores of the same kind and classes."""
        if (other.num_classes, other.kind) != (self.num_classes, self.kind):
            raise ValueError(
                f"other must be of kind {self.kind!r} with {self.num_classes} classes; got {other.kind!r} with {other.num_classes}"
            )
        self.counts += other.counts

    @property
    def whole(self) -> ConfusionMatrix:
        """The matrix of all pixels."""
        return ConfusionMatrix.of(self.counts.sum(axis=0), self.ignore)

    def band(self, width: int) -> ConfusionMatrix:
        """Return the matrix of the pixels in the band of half-width 1..`MAX_WIDTH`."""
        whole_number(width, "width", 1, MAX_WIDTH)
        return ConfusionMatrix.of(self.counts[:width].sum(axis=0), self.ignore)

    def curves(self) -> dict[str, list[float]]:
        """Return pixel_accuracy, class_accuracy and mean_iou in each band.

        The lists are those of half-widths 1..`MAX_WIDTH`, NaN where a band is empty.
        """
        bands = [self.band(width) for width in range(1, MAX_WIDTH + 1)]
        names = ("pixel_accuracy", "class_accuracy", "mean_iou")
        return {name: [float(getattr(band, name)) for band in bands] for name in names}
