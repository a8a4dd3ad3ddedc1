"""What a network or a person says about each pixel, as unary energies.

The rules are those of `dense_crf` on every device: what is annotated Any takes NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.core.arrays import FloatArray
from deeplab_crf.core.mean_field import pack_unary
from deeplab_crf.runtime.checks import LARGEST_INT, real_number, whole_number

# Probabilities below it are raised to it before the logarithm (pydensecrf's default).
SMALLEST_PROBABILITY = 1e-5

# Rounding that a softmax in half precision may leave.
PROBABILITY_SLACK = 1e-2

# Without num_labels, a label that is not below is taken for a mistake: the energies of so many labels would fill the memory.
MOST_GUESSED_LABELS = 4096
VOID_HINT = (
    "65535 usually means no label in 16-bit label maps: set ignore_label=65535, or replace it (--map-labels 65535=255)"
)

# The table of `label_table` has the square of the labels; beyond this many, energies are written pixel by pixel, which is slower.
LARGEST_TABLE = 1024

VOLUMES = ". For volumes use the torch layer, DenseCRF(spatial_dims=3), or MeanField with features of your own"

# How scores of a foreground alone become those of two labels.
_TWO_LABELS = {
    "probabilities": "Of a foreground's probability p make np.stack([1 - p, p])",
    "logits": "Of a foreground's logit z, before a sigmoid, make np.stack([np.zeros_like(z), z])",
    "unary": "Give the background's energies, too",
    "num_labels": "It counts the background, too",
}

SOURCES = ("logits", "probabilities", "unary", "labels")


@dataclass(frozen=True)
class LabelOptions:
    """How to read a label map: number of labels (None: the largest label + 1), the probability that a label is right, and the
    label of pixels that nobody is sure about."""

    num_labels: int | None
    confidence: float
    ignore_label: int | None

    def __post_init__(self) -> None:
        """Check the numbers, and make them plain ones: a NumPy ``ignore_label`` of 8 bits would compare by its own type's rules."""
        confidence = real_number(self.confidence, "confidence")
        if not isinstance(self.confidence, np.floating):
            object.__setattr__(self, "confidence", confidence)
        for name, least, most in (("num_labels", 1, LARGEST_INT), ("ignore_label", -(2**63), 2**63 - 1)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, name, least, most))


def exactly_one(scores: Mapping[str, Any]) -> str:
    """The name of the one entry that is given. Raises ValueError for none or several."""
    given = [name for name, value in scores.items() if value is not None]
    if len(given) != 1:
        got = "none of them" if not given else " and ".join(given)
        raise ValueError(f"give exactly one of {', '.join(f'{name}=' for name in scores)}; got {got}")
    return given[0]


def check_scores_shape(source: str, shape: Sequence[int], image: Sequence[int] | None) -> bool:
    """Whether scores of this shape have a batch dimension. image: the image's shape, or None.

    Raises ValueError where they fit neither way, and where labels have channels, which would be taken for a batch.
    """
    single = 2 if source == "labels" else 3
    if len(shape) not in (single, single + 1) or 0 in shape:
        wanted = "(H, W)" if source == "labels" else "(labels, H, W)"
        volume = VOLUMES if len(shape) == single + 2 else ""
        raise ValueError(
            f"{source} must have shape {wanted}, or that behind a batch dimension, and must not be empty; got shape "
            f"{tuple(shape)}{volume}"
        )
    if source == "labels" and len(shape) == 3 and _has_channels(shape, image):
        hint = (
            "labels[..., 0]" if shape[2] == 1 else "a table of colours: deeplab_crf.data.label_files.read_labels does"
        )
        raise ValueError(f"labels must have shape (H, W); got {tuple(shape)}. Make class ids of it by {hint}")
    return len(shape) > single


def _has_channels(labels: Sequence[int], image: Sequence[int] | None) -> bool:
    """Whether labels of three axes are one map with channels, instead of a batch of maps a few pixels wide."""
    one_image = image is None or (len(image) < 4 and tuple(image[:2]) == tuple(labels[:2]))
    return labels[2] in (1, 3, 4) and min(labels[:2]) > 4 and one_image


def check_batch(source: str, scores: Sequence[int], images: Sequence[int]) -> None:
    """Raises ValueError unless there are as many images as scores. scores, images: their shapes."""
    if not images or images[0] != scores[0]:
        volume = VOLUMES if tuple(images[:3]) == tuple(scores[1:]) else ""
        raise ValueError(
            f"image must hold a batch of {scores[0]} images as {source} does; got shape {tuple(images)}{volume}"
        )


def check_several_labels(source: str, count: int) -> None:
    """Raises ValueError for a single label, which would have probability 1 everywhere."""
    if count < 2:
        wanted = "be 2 or more" if source == "num_labels" else "have 2 labels or more"
        raise ValueError(f"{source} must {wanted}; got {count}. {_TWO_LABELS[source]}")


def check_label_kind(whole: bool, dtype: object) -> None:
    """Raises TypeError unless labels are whole numbers."""
    if not whole:
        raise TypeError(f"labels must be whole numbers; got dtype {dtype}. Give scores as logits= or probabilities=")


def num_labels_of(source: str, scores: Any, options: LabelOptions) -> int:
    """The number of labels L that the scores speak of, ``(..., L, H, W)``, or whole numbers for labels."""
    wish = options.num_labels
    if source != "labels":
        check_several_labels(source, int(scores.shape[-3]))
        if wish is not None and wish != scores.shape[-3]:
            raise ValueError(f"num_labels must be the {scores.shape[-3]} labels of {source}, or None; got {wish}")
        return int(scores.shape[-3])
    if wish is not None:
        check_several_labels("num_labels", wish)
        if wish == 2:
            _warn_of_a_mask(scores, options.ignore_label)
        return wish
    known = scores.reshape(-1) if options.ignore_label is None else scores[scores != options.ignore_label]
    if len(known) == 0:
        raise ValueError(
            "labels must hold at least one pixel that is not ignore_label, or num_labels must be given; got neither"
        )
    low, high = int(known.min()), int(known.max())
    if low < 0:
        raise ValueError(f"labels must be >= 0; got {low}. Set ignore_label for unlabelled pixels")
    if high >= MOST_GUESSED_LABELS:
        raise ValueError(
            f"num_labels must be given where labels go beyond {MOST_GUESSED_LABELS - 1}; got a label of {high}, which would mean "
            f"{high + 1} labels. {VOID_HINT if high == 65535 else 'Set ignore_label if it stands for pixels without a label'}"
        )
    if high == 0:
        ignored = len(known) < math.prod(scores.shape)
        remedy = (
            f"If {options.ignore_label} is a class of a mask, give labels == {options.ignore_label}; else num_labels"
        )
        raise ValueError(
            "labels must hold 2 labels or more, or num_labels must be given; got 0 alone"
            + (f" beside ignore_label = {options.ignore_label}. {remedy}" if ignored else "")
        )
    return high + 1


def _warn_of_a_mask(labels: Any, ignore_label: int | None) -> None:
    """Warns where label 0 is the only one beside ignored pixels: the result is 0 everywhere, and a mask of 0 and 255 looks so."""
    ignored = labels == ignore_label
    if ignore_label and bool(ignored.any()) and bool((ignored | (labels == 0)).all()):
        warnings.warn(
            f"labels hold 0 alone beside ignore_label = {ignore_label}, so the result is label 0 everywhere. If {ignore_label} is "
            f"a class of a mask, give labels == {ignore_label}",
            stacklevel=2,
        )


def check_probability_range(low: float, high: float) -> None:
    """Raises ValueError unless probabilities from ``low`` to ``high`` are in 0..1, but for rounding."""
    if low < -PROBABILITY_SLACK or high > 1 + PROBABILITY_SLACK:
        raise ValueError(
            f"probabilities must be in 0..1; got {low:g}..{high:g}. Give a network's raw scores as logits=, energies as unary="
        )


def unsure_pixels(labels: Any, num_labels: int, options: LabelOptions) -> Any:
    """Which ``labels`` are ``ignore_label``. Raises ValueError for others that are no label."""
    unsure = labels != labels if options.ignore_label is None else labels == options.ignore_label
    wrong = ~unsure & ((labels < 0) | (labels >= num_labels))
    if wrong.any():
        first = int(labels[wrong][0])
        hint = "Set num_labels, or ignore_label for unlabelled pixels" if first != 65535 else VOID_HINT
        raise ValueError(
            f"labels must be in 0..{num_labels - 1}, or ignore_label = {options.ignore_label}; got {first}. {hint}"
        )
    return unsure


def label_costs(num_labels: int, confidence: float) -> tuple[float, float, float]:
    """The energies of a pixel's own label, of each of the others, and of every label of an unlabelled pixel:
    ``-log(confidence)``, ``-log((1 - confidence) / (L - 1))`` and ``log L``."""
    if not 1 < confidence * num_labels < num_labels:
        raise ValueError(
            f"confidence must be between 1 / {num_labels} (the number of labels) and 1, both excluded; got {confidence!r}. Below "
            "that, a pixel's own label would be less probable than the others"
        )
    others = (1 - confidence) / max(num_labels - 1, 1)
    return -float(np.log(confidence)), -float(np.log(others)), float(np.log(num_labels))


def label_table(num_labels: int, confidence: float, dtype: np.dtype[Any]) -> FloatArray:
    """Energies ``(L + 1, L)``: the rows of pixels of label 0, 1, ..., and of unlabelled pixels; see `label_costs`."""
    own, others, unlabelled = label_costs(num_labels, confidence)
    table = np.full((num_labels + 1, num_labels), others, dtype)
    np.fill_diagonal(table, own)
    table[num_labels] = unlabelled
    return table


def _label_rows(flat: NDArray[Any], num_labels: int, options: LabelOptions, dtype: np.dtype[Any]) -> FloatArray:
    """Energies ``(N, L)`` of labels ``(N,)``; see `label_costs`."""
    unsure = unsure_pixels(flat, num_labels, options)
    if num_labels <= LARGEST_TABLE:
        rows: FloatArray = label_table(num_labels, options.confidence, dtype)[np.where(unsure, num_labels, flat)]
        return rows
    own, others, unlabelled = label_costs(num_labels, options.confidence)
    rows = np.full((flat.size, num_labels), others, dtype)
    rows[np.flatnonzero(~unsure), flat[~unsure]] = own
    rows[unsure] = unlabelled
    return rows


def energies(
    source: str, array: NDArray[Any], num_labels: int, options: LabelOptions, dtype: np.dtype[Any], threads: int | None
) -> FloatArray:
    """Unary energies ``(L, N)`` in the engine's layout from one image's scores: ``(L, H, W)``, or ``(H, W)`` for labels.

    logits: negated. probabilities: ``-log(max(p, 1e-5))``. unary: as they are. labels: see `label_costs`.
    Which energies are accepted: see core/energies.py.
    """
    if source == "labels":
        check_label_kind(array.dtype.kind in "biu", array.dtype)
        return _label_rows(array.reshape(-1), num_labels, options, dtype).T
    packed = pack_unary(
        array.reshape(array.shape[0], -1),
        dtype=dtype,
        name=source,
        negate=source == "logits",
        energies=source != "probabilities",
        threads=threads,
    )
    if source == "probabilities":
        check_probability_range(float(packed.min()), float(packed.max()))
        np.maximum(packed, packed.dtype.type(SMALLEST_PROBABILITY), out=packed)
        np.minimum(packed, packed.dtype.type(1), out=packed)
        np.negative(np.log(packed, out=packed), out=packed)
    return packed
