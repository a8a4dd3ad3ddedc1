"""Which unary energies every API and device accepts.

An energy of +inf (a logit of -inf) says that a pixel cannot have a label, as `-np.log(p)` of a saturated softmax does. It gives
the bits that `LARGEST_ENERGY` in its place would give. NaN, energies of -inf, and pixels all of whose labels are +inf have no
meaning; they raise ValueError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deeplab_crf.core.arrays import FloatArray

LARGEST_ENERGY = float(np.finfo(np.float32).max)
"""What replaces an energy of +inf. The other energies of such a pixel are capped at it."""


def capped_scores(scores: FloatArray, *, negated: bool) -> tuple[FloatArray, tuple[int, ...] | None]:
    """Cap scores that stand for energies of +inf, before they are interpolated.

    Args:
        scores: The scores ``(L, ...)``, labels first.
        negated: Whether the energies are the negative scores, as those of logits are.

    Returns:
        The scores, in float32 or wider where one was capped; and the index of the first one that is not accepted, or None.
    """
    infinite = scores == (-np.inf if negated else np.inf)
    nothing_left = infinite.all(axis=0)
    wrong = ~np.isfinite(scores) & (~infinite | nothing_left)
    first = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else None
    if not infinite.any():
        return scores, first
    wide = scores.astype(np.result_type(scores.dtype, np.float32))
    capped = wide.clip(min=-LARGEST_ENERGY) if negated else wide.clip(max=LARGEST_ENERGY)
    return np.where(infinite.any(axis=0), capped, wide), first


def energy_error(name: str, values: ArrayLike, label: int, place: str, *, negated: bool, dtype: Any) -> ValueError:
    """The error for a pixel whose energies are not accepted.

    Args:
        name: The argument that holds the energies, or what they come from.
        values: The values of all labels of the pixel as they were given.
        label: The label whose value was found first.
        place: The words that say which pixel it is, such as ", point 3".
        negated: Whether the energies are the negative values, as those of logits are.
        dtype: The type that the energies are converted to.
    """
    given = np.asarray(values)
    excluded = "-inf" if negated else "inf"
    with np.errstate(over="ignore"):
        signed = (-given if negated else given).astype(dtype)
    if np.isposinf(signed).all():
        return ValueError(
            f"{name} must be finite for at least one label of each pixel; got {excluded} for all labels{place}. "
            "Give such a pixel the same finite value for all labels"
        )
    too_large = f" in {dtype}" if np.isfinite(given[label]) else ""
    return ValueError(
        f"{name} must be finite{too_large}; got {given[label]} for label {label}{place}. Only {excluded} is taken too, for a "
        "label that the pixel cannot have. Check the network's output; energies are -log(p), logits are log(p)"
    )
