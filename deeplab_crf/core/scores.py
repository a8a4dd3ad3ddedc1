"""What a network or a person says about each pixel, as unary energies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplab_crf.core.arrays import FloatArray, as_real_array
from deeplab_crf.core.mean_field import pack_unary

# Probabilities below it are raised to it before the logarithm (pydensecrf's default).
SMALLEST_PROBABILITY = 1e-5

# Rounding that a softmax in half precision may leave.
_PROBABILITY_SLACK = 1e-2

SOURCES = ("logits", "probabilities", "unary", "labels")


@dataclass(frozen=True)
class LabelOptions:
    """How to read a label map: number of labels (None: the largest label + 1), the probability that a label is right, and the
    label of pixels that nobody is sure about."""

    num_labels: int | None
    confidence: float
    ignore_label: int | None


def exactly_one(scores: dict[str, ArrayLike | None]) -> tuple[str, NDArray[Any]]:
    """The one entry that is given, by name, as an array. Raises ValueError for none or several."""
    given = [name for name, value in scores.items() if value is not None]
    if len(given) != 1:
        got = "none of them" if not given else " and ".join(given)
        raise ValueError(f"give exactly one of {', '.join(f'{name}=' for name in scores)}; got {got}")
    value = scores[given[0]]
    assert value is not None
    return given[0], as_real_array(value, given[0])


def num_labels_of(source: str, array: NDArray[Any], options: LabelOptions) -> int:
    """The number of labels L that the scores speak of."""
    wish = options.num_labels
    if wish is not None and (isinstance(wish, bool) or not isinstance(wish, int | np.integer) or wish < 1):
        raise ValueError(f"num_labels must be a whole number >= 1; got {wish!r}")
    if source != "labels":
        if wish is not None and wish != array.shape[-3]:
            raise ValueError(f"num_labels must be the {array.shape[-3]} labels of {source}, or None; got {wish}")
        return int(array.shape[-3])
    _check_label_dtype(array)
    if wish is not None:
        return int(wish)
    known = array if options.ignore_label is None else array[array != options.ignore_label]
    if known.size == 0:
        raise ValueError(
            "labels must hold at least one pixel that is not ignore_label, or num_labels must be given; got neither"
        )
    if known.min() < 0:
        raise ValueError(
            f"labels must be >= 0; got {known.min()}. Set ignore_label for pixels that nobody is sure about"
        )
    return int(known.max()) + 1


def _check_label_dtype(labels: NDArray[Any]) -> None:
    if labels.dtype.kind not in "biu":
        raise TypeError(
            f"labels must be whole numbers; got dtype {labels.dtype}. Give scores as logits= or probabilities="
        )


def energies(
    source: str, array: NDArray[Any], num_labels: int, options: LabelOptions, dtype: np.dtype[Any], threads: int | None
) -> FloatArray:
    """Unary energies ``(L, N)`` in the engine's layout from one image's scores: ``(L, H, W)``, or ``(H, W)`` for labels.

    logits: negated. probabilities: ``-log(max(p, 1e-5))``. unary: as they are. labels: ``-log(confidence)`` for the pixel's
    label, ``-log((1 - confidence) / (L - 1))`` for the others, ``log L`` for all where unsure.
    """
    if source == "labels":
        return _label_energies(array, num_labels, options, dtype)
    packed = pack_unary(
        array.reshape(array.shape[0], -1), dtype=dtype, name=source, negate=source == "logits", threads=threads
    )
    if source == "probabilities":
        low, high = float(packed.min()), float(packed.max())
        if low < -_PROBABILITY_SLACK or high > 1 + _PROBABILITY_SLACK:
            raise ValueError(
                f"probabilities must be in 0..1; got {low:g}..{high:g}. Give a network's raw scores as logits=, energies as unary="
            )
        np.maximum(packed, packed.dtype.type(SMALLEST_PROBABILITY), out=packed)
        np.minimum(packed, packed.dtype.type(1), out=packed)
        np.negative(np.log(packed, out=packed), out=packed)
    return packed


def _label_energies(labels: NDArray[Any], num_labels: int, options: LabelOptions, dtype: np.dtype[Any]) -> FloatArray:
    _check_label_dtype(labels)
    if not 0 < options.confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, both excluded; got {options.confidence!r}")
    flat = labels.reshape(-1)
    unsure = np.zeros(flat.shape, bool) if options.ignore_label is None else flat == options.ignore_label
    wrong = ~unsure & ((flat < 0) | (flat >= num_labels))
    if wrong.any():
        raise ValueError(
            f"labels must be in 0..{num_labels - 1}, or ignore_label = {options.ignore_label}; got {flat[wrong][0]}. "
            "Set num_labels, or ignore_label for pixels that nobody is sure about"
        )
    others = (1 - options.confidence) / max(num_labels - 1, 1)
    table = np.full((num_labels + 1, num_labels), -np.log(others), dtype)
    np.fill_diagonal(table, -np.log(options.confidence))
    table[num_labels] = np.log(num_labels)
    packed: FloatArray = table[np.where(unsure, num_labels, flat)]
    return packed.T
