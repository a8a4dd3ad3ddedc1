"""The confusion matrix over a set of images, and the papers' measures. Needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.datasets import IGNORE
from deeplab_crf.runtime.checks import whole_number


class ConfusionMatrix:
    """Counts of pixels by true and predicted class over all images, never a mean over images.

    ``matrix`` is int64 ``(C, C)``: row t, column p counts the pixels of true class t that were
    predicted as p.

    Args:
        num_classes: C.
        ignore: The label value of pixels that are not scored.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        self.num_classes, self.ignore = whole_number(num_classes, "num_classes", 1), int(ignore)
        self.matrix = np.zeros((self.num_classes, self.num_classes), np.int64)

    @classmethod
    def of(cls, matrix: NDArray[np.int64], ignore: int = IGNORE) -> ConfusionMatrix:
        """Wrap counts made elsewhere.

        Args:
            matrix: int64 ``(C, C)``; it is not copied.
            ignore: The label value of pixels that are not scored.
        """
        result = cls(len(matrix), ignore)
        result.matrix = matrix
        return result

    def add(self, predicted: Any, labels: Any) -> None:
        """Count one image or several.

        Args:
            predicted: Array or tensor of whole numbers, ``(H, W)`` or any other shape.
            labels: The same shape.

        Raises:
            TypeError: The values are no whole numbers.
            ValueError: The shapes differ, or a scored pixel has a class outside 0..C-1; nothing is
                counted.
        """
        guess, truth = _whole_numbers(predicted, "predicted"), _whole_numbers(labels, "labels")
        if guess.shape != truth.shape:
            raise ValueError(f"predicted must have the shape of labels, {truth.shape}; got {guess.shape}")
        pairs, _ = pair_numbers(guess, truth, self.num_classes, self.ignore)
        self.matrix += np.bincount(pairs, minlength=self.matrix.size).reshape(self.matrix.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix of the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"other must have {self.num_classes} classes; got {other.num_classes}")
        self.matrix += other.matrix

    @property
    def num_pixels(self) -> int:
        """The number of scored pixels."""
        return int(self.matrix.sum())

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, ``(C,)``.

        It is NaN for classes that are neither in the labels nor predicted.
        """
        right = np.diagonal(self.matrix)
        return _ratio(right, self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - right)

    @property
    def absent(self) -> tuple[int, ...]:
        """The classes that are neither in the labels nor predicted; `mean_iou` leaves them out."""
        return tuple(int(i) for i in np.flatnonzero(np.isnan(self.iou)))

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """The classes without a pixel in the labels.

        Those that are predicted have an IoU of 0, the others are `absent`.
        """
        return tuple(int(i) for i in np.flatnonzero(self.matrix.sum(axis=1) == 0))

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that are in the labels or predicted.

        It is NaN before any pixel is scored. Two sets compare only if the same classes occur in
        both, since `absent` classes are left out.
        """
        return _mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of scored pixels whose class is right; NaN before any is scored."""
        return float(_ratio(np.trace(self.matrix), self.matrix.sum()))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class's pixels that are right, ``(C,)``; NaN for classes not in the labels."""
        return _ratio(np.diagonal(self.matrix), self.matrix.sum(axis=1))

    @property
    def class_accuracy(self) -> float:
        """Mean of `recall` over the classes that are in the labels."""
        return _mean(self.recall)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_classes} classes, {self.num_pixels} pixels, mean_iou={self.mean_iou:.4f}, "
            f"pixel_accuracy={self.pixel_accuracy:.4f})"
        )


def pair_numbers(
    predicted: NDArray[Any], labels: NDArray[Any], num_classes: int, ignore: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Number the pairs of true and predicted class of the scored pixels.

    Args:
        predicted: Predicted classes.
        labels: True classes, of the same shape.
        num_classes: C.
        ignore: The label value of pixels that are not scored.

    Returns:
        ``true class * C + predicted class`` of the n scored pixels, ``(n,)``, and a mask of these
        pixels.

    Raises:
        ValueError: A scored pixel has a class outside 0..C-1.
    """
    scored = labels != ignore
    truth, guess = labels[scored], predicted[scored]
    for name, values in (("labels", truth), ("predicted", guess)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            wrong = int(values.min()) if values.min() < 0 else int(values.max())
            allowed = f"0..{num_classes - 1}" + (f" or {ignore} (not scored)" if name == "labels" else "")
            raise ValueError(f"{name} must be in {allowed}; got {wrong}")
    return truth.astype(np.intp) * num_classes + guess.astype(np.intp), scored


def _whole_numbers(values: Any, name: str) -> NDArray[Any]:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be whole numbers; got dtype {array.dtype}")
    return array


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Divide, with NaN where ``whole`` is 0."""
    counts = np.asarray(whole, np.float64)
    result = np.full(counts.shape, np.nan)
    np.divide(part, counts, out=result, where=counts > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
