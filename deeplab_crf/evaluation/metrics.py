"""One confusion matrix over a whole set of images, and what the papers read off it. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.datasets import IGNORE
from deeplab_crf.runtime.checks import whole_number


class ConfusionMatrix:
    """Counts of pixels by true and predicted class, over as many images as are added: never a mean over images.

    num_classes: C. ignore: the label value of pixels that are not scored.

    matrix: int64 ``(C, C)``; row t, column p counts the pixels of true class t that were predicted as p.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        self.num_classes, self.ignore = whole_number(num_classes, "num_classes", 1), int(ignore)
        self.matrix = np.zeros((self.num_classes, self.num_classes), np.int64)

    @classmethod
    def of(cls, matrix: NDArray[np.int64], ignore: int = IGNORE) -> ConfusionMatrix:
        """With counts made elsewhere, int64 ``(C, C)``, which are not copied."""
        result = cls(len(matrix), ignore)
        result.matrix = matrix
        return result

    def add(self, predicted: Any, labels: Any) -> None:
        """Count one image or several. Arrays or tensors of whole numbers, of one shape, ``(H, W)`` or any other.

        Raises TypeError for other numbers and ValueError for shapes that differ, and for classes outside 0..C-1 on pixels that are
        scored; nothing is counted then.
        """
        guess, truth = _whole_numbers(predicted, "predicted"), _whole_numbers(labels, "labels")
        if guess.shape != truth.shape:
            raise ValueError(f"predicted must have the shape of labels, {truth.shape}; got {guess.shape}")
        pairs, _ = pair_numbers(guess, truth, self.num_classes, self.ignore)
        self.matrix += np.bincount(pairs, minlength=self.matrix.size).reshape(self.matrix.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another matrix of the same classes counted."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"other must have {self.num_classes} classes; got {other.num_classes}")
        self.matrix += other.matrix

    @property
    def num_pixels(self) -> int:
        """Pixels that were scored."""
        return int(self.matrix.sum())

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class: ``(C,)``, NaN for classes that are neither in the labels nor predicted."""
        right = np.diagonal(self.matrix)
        return _ratio(right, self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - right)

    @property
    def absent(self) -> tuple[int, ...]:
        """The classes that are neither in the labels nor predicted: `mean_iou` leaves them out."""
        return tuple(int(i) for i in np.flatnonzero(np.isnan(self.iou)))

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """The classes without a pixel in the labels, those that are `absent` and those that are predicted, whose IoU is 0."""
        return tuple(int(i) for i in np.flatnonzero(self.matrix.sum(axis=1) == 0))

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that are in the labels or predicted; NaN before any pixel was scored.

        Classes `absent` from both are left out, so two sets compare only where the same classes occur.
        """
        return _mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the scored pixels whose class is right; NaN before any was scored."""
        return float(_ratio(np.trace(self.matrix), self.matrix.sum()))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class's pixels whose class is right: ``(C,)``, NaN for classes that are not in the labels."""
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
    """``true class * num_classes + predicted class`` of the n pixels that are scored, ``(n,)``, and which those are, of the arrays'
    one shape. Raises ValueError for classes outside 0..num_classes-1 among them."""
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
    """part / whole, NaN where whole is 0."""
    counts = np.asarray(whole, np.float64)
    result = np.full(counts.shape, np.nan)
    np.divide(part, counts, out=result, where=counts > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
