"""``pydensecrf.utils``: unary energies from labels and probabilities, features for volumes and multispectral images.

Unlike `DenseCRF2D`, whose widths are (x, y), the functions here take rows first: ``sdims`` is (sy, sx), or one a axis.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplab_crf.pydensecrf._checks import check_finite, real_array, whole_number, widths
from deeplab_crf.runtime.checks import real_number

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]

Float32Array = NDArray[np.float32]

_LOGGER = logging.getLogger(__name__)


def unary_from_labels(labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> Float32Array:
    """Unary energies (n_labels, N) float32 of hard labels that are right with probability ``gt_prob``.

    labels: whole numbers of any shape with N elements. zero_unsure: True, labels are 1..n_labels (row l - 1) and 0
    means "could be anything", -log(1 / n_labels) in every row; False, labels are 0..n_labels-1. gt_prob: in (0, 1).
    A pixel's own row gets -log(gt_prob), the others -log((1 - gt_prob) / (n_labels - 1)).
    Negative labels count from the last one, as in pydensecrf, and a warning is logged.
    Raises ValueError naming the values that are no labels.
    """
    count = whole_number(n_labels, "n_labels", 1)
    probability = _fraction(gt_prob, "gt_prob")
    if probability == 1.0:
        raise ValueError("gt_prob must be below 1, or the energies of other labels are infinite; got 1.0")
    rows, unsure = _label_rows(labels, count, zero_unsure)
    wrong = -np.log((1.0 - probability) / (count - 1)) if count > 1 else 0.0
    unary = np.full((count, rows.size), wrong, dtype=np.float32)
    sure = np.flatnonzero(~unsure)
    unary[rows[sure], sure] = -np.log(probability)
    if sure.size < rows.size:
        unary[:, unsure] = -np.log(1.0 / count)
    return unary


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> Float32Array:
    """Deprecated: `unary_from_labels` with ``zero_unsure=True``."""
    _deprecated("compute_unary", "unary_from_labels")
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(sm: ArrayLike, scale: float | None = None, clip: float | None = 1e-5) -> Float32Array:
    """Unary energies (C, N) float32, -log(probability), of class probabilities ``sm`` (C, ...), classes first.

    scale: in (0, 1], trust in ``sm``: mixes it with the uniform distribution, scale * sm + (1 - scale) / C.
    clip: the least probability, in 0..1; more than 1 counts as 1. None clips nothing. With None and 0, a probability of 0
    becomes float32's smallest normal number (energy 87.3) where pydensecrf returns infinity.
    float16 is computed in float32, where pydensecrf rounds the logarithm to 11 bits.
    Raises ValueError for NaN, infinity, and, unless they are clipped, negative probabilities.
    """
    probabilities = real_array(sm, "sm")
    if probabilities.ndim == 0 or probabilities.size == 0:
        raise ValueError(f"sm must have shape (classes, ...) and no empty axis; got {probabilities.shape}")
    check_finite(probabilities, "sm")
    wide = np.result_type(probabilities.dtype, np.float32)
    if scale is not None:
        trust = _fraction(scale, "scale")
        work = (trust * probabilities.astype(wide, copy=False)).astype(np.float64)
        work += (1.0 - trust) * (1.0 / len(probabilities))
    else:
        work = probabilities.astype(wide)
    if clip is not None:
        np.clip(work, _fraction(clip, "clip") if clip != 0 else np.finfo(np.float32).tiny, 1.0, out=work)
    elif work.min() < 0:
        raise ValueError(f"sm must hold probabilities; got {work.min()}. Are these logits? Take their softmax first")
    else:
        np.maximum(work, np.finfo(np.float32).tiny, out=work)
    np.log(work, out=work)
    np.negative(work, out=work)
    return work.reshape(len(probabilities), -1).astype(np.float32, copy=False)


def softmax_to_unary(sm: ArrayLike, GT_PROB: float = 1) -> Float32Array:
    """Deprecated: `unary_from_softmax` with ``scale=GT_PROB`` and no clipping."""
    _deprecated("softmax_to_unary", "unary_from_softmax")
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: float | ArrayLike, shape: Sequence[int]) -> Float32Array:
    """Position features (len(shape), N) float32 for `DenseCRF.addPairwiseEnergy`: each axis' index over its width.

    sdims: standard deviations in elements, one an axis (rows first), or one number for all; axes that it has none for
    are not scaled. shape: the CRF's, positive.
    """
    sizes = tuple(whole_number(size, "shape", 1) for size in shape)
    if not sizes:
        raise ValueError("shape must have one axis or more; got none")
    features = np.empty((len(sizes), *sizes), np.float32)
    _fill_positions(features, sdims)
    return features.reshape(len(sizes), -1)


def create_pairwise_bilateral(
    sdims: float | ArrayLike, schan: float | ArrayLike, img: ArrayLike, chdim: int = -1
) -> Float32Array:
    """Position and channel features (axes + channels, N) float32 for `DenseCRF.addPairwiseEnergy`.

    img: of any number of axes, integers or finite floats. chdim: the axis of its channels; -1 means that it has none,
    so give 2 for an (H, W, 3) image. sdims: standard deviations in elements, one a remaining axis (rows first), or
    one number. schan: in the image's own units, one a channel, or one number. Axes and channels that these have none for
    are not scaled, as in pydensecrf.
    Raises ValueError for more of them than there are axes or channels, NaN and infinity.
    """
    image = real_array(img, "img")
    if image.size == 0 or image.ndim == 0:
        raise ValueError(f"img must have one axis or more and no empty one; got shape {image.shape}")
    check_finite(image, "img")
    planes = image[None] if chdim == -1 else _channels_first(image, chdim)
    axes, channels = planes.ndim - 1, len(planes)
    if axes == 0:
        raise ValueError(f"img must have an axis besides its channels; got shape {image.shape} and chdim={chdim}")
    meaning = f"one a channel of img, whose shape is {image.shape}"
    if chdim == -1:
        meaning += "; chdim=-1 means that it has no channel axis"
    scales = widths(schan, channels, "schan", meaning, fewer=True)
    features = np.empty((axes + channels, *planes.shape[1:]), np.float32)
    _fill_positions(features, sdims)
    for feature, plane, scale in zip(features[axes:], planes, scales, strict=True):
        feature[...] = plane
        feature /= scale  # rounded once, as pydensecrf does: the last bit decides which lattice vertices exist
    return features.reshape(axes + channels, -1)


def _fill_positions(features: Float32Array, sdims: object) -> None:
    """Write each axis' index over its width into the first rows of ``features`` (rows, ...)."""
    axes = features.ndim - 1
    scales = widths(sdims, axes, "sdims", f"one an axis of {features.shape[1:]}", fewer=True)
    for axis, scale in enumerate(scales):
        positions = np.arange(features.shape[1 + axis], dtype=np.float32)
        positions /= scale
        features[axis] = positions.reshape((-1,) + (1,) * (axes - 1 - axis))


def _channels_first(image: NDArray[Any], chdim: int) -> NDArray[Any]:
    axis = whole_number(chdim, "chdim", -image.ndim)
    if axis >= image.ndim:
        raise ValueError(f"chdim must be an axis of img, whose shape is {image.shape}, or -1 for none; got {chdim}")
    return np.moveaxis(image, axis, 0)


def _label_rows(labels: ArrayLike, count: int, zero_unsure: bool) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The row of each label, flattened, and where it is unsure; there the row has no meaning."""
    offset = 1 if zero_unsure else 0
    array = real_array(labels, "labels").reshape(-1)
    if array.size == 0:
        raise ValueError("labels must not be empty")
    check_finite(array, "labels")
    low, high, lowest = array.min(), array.max(), offset - count
    whole = array.dtype.kind != "f" or bool((array == np.rint(array)).all())
    if not whole or low < lowest or high > count - 1 + offset:
        bad = np.unique(array[(array < lowest) | (array > count - 1 + offset) | (array != np.rint(array))])
        listed = ", ".join(str(value) for value in bad[:5]) + (", ..." if bad.size > 5 else "")
        unsure = ", 0 meaning unsure" if offset else ""
        cure = f"zero_unsure={bool(offset)}; map ignored pixels to 0 and use zero_unsure=True"
        raise ValueError(
            f"labels must be whole numbers in 0..{count - 1 + offset}{unsure} ({count} labels, {cure}); got {listed}"
        )
    if low < 0:
        _LOGGER.warning(
            "pydensecrf.unary_from_labels: negative labels count from the last one, as NumPy's indices: %d is taken for label "
            "%d. Map pixels to be ignored to 0 and use zero_unsure=True.",
            int(low),
            int(low) + count,
        )
    whole_labels = array.astype(np.intp)
    return whole_labels - offset, (whole_labels == 0) & zero_unsure


def _fraction(value: float, name: str) -> float:
    number = real_number(value, name)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1; got {value!r}")
    return number


def _deprecated(old: str, new: str) -> None:
    _LOGGER.warning(
        "pydensecrf.%s is deprecated, use %s instead.", old, new
    )  # as pydensecrf does: no warning of Python's
