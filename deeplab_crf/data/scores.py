"""Per-pixel class scores from .npy, .npz and label files, brought to the size of their image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab_crf.core.energies import capped_scores
from deeplab_crf.data.cams import SUM_TOLERANCE, ClassMaps, read_cams
from deeplab_crf.data.images import LabelImage
from deeplab_crf.data.label_coding import LabelCoding
from deeplab_crf.data.label_colors import LARGEST_ID
from deeplab_crf.data.label_files import PLAIN, Size, read_labels
from deeplab_crf.data.numpy_files import stored_arrays
from deeplab_crf.runtime.files import ARRAY_SUFFIXES

KINDS = ("logits", "probabilities", "unary")
_KEY_KINDS = {
    "logits": "logits",
    "probabilities": "probabilities",
    "probability": "probabilities",
    "probs": "probabilities",
    "prob": "probabilities",
    "softmax": "probabilities",
    "unary": "unary",
}
UNSURE = -1
MOST_CLASSES = 1024  # of scores in a file, unless num_labels says more: memory is taken for no more


@dataclass(frozen=True)
class Scores:
    """What a file says about every pixel, in the words of `deeplab_crf.dense_crf`.

    kind: "logits", "probabilities" or "unary" with values (C, H, W) of a float dtype; or "labels" with values (H, W)
    int32, 0..C-1 or `UNSURE`. class_ids: (C,) int64, the id of each class. palette: the label image's colours, or None.
    partial: whether the file names its classes, of which there may be others that it leaves out.
    """

    kind: str
    values: NDArray[np.floating] | NDArray[np.int32]
    class_ids: NDArray[np.int64]
    palette: tuple[int, ...] | None = None
    partial: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[-2], self.values.shape[-1]


def read_scores(
    path: Path,
    *,
    kind: str | None = None,
    key: str | None = None,
    num_labels: int | None = None,
    ignore_label: int | None = 255,
    image_size: tuple[int, int] | None = None,
    coding: LabelCoding = PLAIN,
    cam_background: str | None = None,
) -> Scores:
    """Read scores or labels from ``path``.

    .npy/.npz: float (C, H, W), a batch of one allowed, or one channel, the foreground of two classes (its probability,
    or its logit against 0); integer (H, W) are labels; uint8 and uint16 (C, H, W) that add up to 255 or 65535 are
    probabilities; a dictionary of class activation maps. Logits of -inf and energies of +inf, for classes that a pixel
    cannot have, become the largest float32. Other files are label images. kind: what float scores are
    ("logits", "probabilities", "unary"); None: from the .npz key's name, or from the numbers where they leave no doubt,
    else ValueError. key: which array of an .npz. num_labels: how many classes there are; None: the labels present, or
    the channels of the scores. ignore_label: the id that means "not known" in labels, or None. image_size: (H, W) of
    the image they belong to, to recognise (H, W, C). coding: how the values of labels become class ids. cam_background: the
    background of class activation maps, see `deeplab_crf.data.cams.read_cams`.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        labels = read_labels(path, coding, lambda size: _check_label_size(str(path), size, image_size))
        return _from_labels(path, labels, num_labels, ignore_label)
    with stored_arrays(path) as arrays:
        name = "" if list(arrays) == [""] else _choose(path, [entry for entry in arrays if entry != "classes"], key)
        stored = arrays[name]
        if stored.dtype.hasobject and name == "":
            if kind is not None:
                raise ValueError(
                    f"{path}: holds Python objects; --scores-are is for arrays, not for class activation maps"
                )
            return _from_cams(path, read_cams(path, stored, cam_background), num_labels, image_size)
        if stored.dtype.kind in "iub" and kind is None and len(stored.shape) == 2 and name not in _KEY_KINDS:
            _check_label_size(str(path), (stored.shape[0], stored.shape[1]), image_size)
            return _from_labels(path, LabelImage(coding.apply(stored.read())), num_labels, ignore_label)
        layout = _Layout.of(path, stored.shape, image_size, max(num_labels or 0, MOST_CLASSES))
        array = layout.channels_first(stored.read())
        ids = arrays.get("classes")
        class_ids = ids.read() if ids is not None and ids.shape == (layout.channels,) else None
    scores = _from_array(path, array, kind or _KEY_KINDS.get(name))
    channels = scores.values.shape[0]
    if num_labels is not None and num_labels != channels:
        raise ValueError(f"{path}: num_labels is {num_labels}, but the scores have {channels} classes; leave it out")
    if class_ids is not None and class_ids.shape == (channels,):
        return replace(scores, class_ids=_checked_ids(path, class_ids), partial=True)
    return scores


def _from_cams(path: Path, maps: ClassMaps, num_labels: int | None, image_size: Size | None) -> Scores:
    """Class activation maps as scores of the classes that are present. They are probabilities but for their sum, which does not
    matter to a CRF."""
    _check_score_size(str(path), (maps.values.shape[1], maps.values.shape[2]), image_size)
    if num_labels is not None and num_labels <= int(maps.class_ids[-1]):
        raise ValueError(f"{path}: num_labels is {num_labels}, but the maps are of class {maps.class_ids[-1]} too")
    return Scores("probabilities", maps.values, maps.class_ids, partial=True)


def _checked_ids(path: Path, class_ids: NDArray[Any]) -> NDArray[np.int64]:
    """The ids under "classes" of a .npz file. Raises ValueError unless they are different whole numbers, 0 or more."""
    if class_ids.dtype.kind not in "iu" or len(np.unique(class_ids)) != len(class_ids) or int(class_ids.min()) < 0:
        raise ValueError(f"{path}: classes must be different whole numbers, 0 or more; got {class_ids.tolist()[:5]}")
    return class_ids.astype(np.int64)


def _choose(path: Path, names: list[str], key: str | None) -> str:
    if key is not None and key in names:
        return key
    known = [name for name in names if name in _KEY_KINDS]
    for candidates in (names, known):
        if key is None and len(candidates) == 1:
            return candidates[0]
    wanted = f"no array is called {key!r}" if key is not None else "which array holds the scores is not clear"
    raise ValueError(f"{path}: {wanted}; it has {', '.join(names) or 'none'}. Name one with --key")


@dataclass(frozen=True)
class _Layout:
    """Where the axes of stored scores lie. channels: 1 where there is no axis of classes. batched: a batch of one is in front.
    channels_last: classes come last."""

    channels: int
    batched: bool
    channels_last: bool

    @staticmethod
    def of(path: Path, shape: tuple[int, ...], image: Size | None, most_classes: int) -> _Layout:
        """Find the layout before the scores are read. Raises ValueError that names the file for shapes that are none, that may
        be two, of more classes than there can be, or of more pixels than the image has."""
        batched = len(shape) == 4 and shape[0] == 1
        bare = shape[1:] if batched else shape
        if len(bare) not in (2, 3) or 0 in bare:
            raise ValueError(f"{path}: scores must have shape (C, H, W), or (H, W) for two classes; got {shape}")
        if len(bare) == 2:
            _check_score_size(str(path), (bare[0], bare[1]), image)
            return _Layout(1, batched, channels_last=False)
        if bare[:2] == bare[1:] == image and not batched:
            raise ValueError(
                f"{path}: shape {shape} may be (C, H, W) or (H, W, C). Save the scores as (1, C, H, W), which has one meaning"
            )
        last = bare[:2] == image != bare[1:]
        channels, *size = (bare[2], *bare[:2]) if last else bare
        if channels > most_classes:
            raise ValueError(
                f"{path}: scores of more than {most_classes} classes need num_labels (--num-labels); got shape {shape}. They must "
                "be (C, H, W), or (H, W, C) at the image's size"
            )
        _check_score_size(str(path), (size[0], size[1]), image)
        return _Layout(channels, batched, last)

    def channels_first(self, array: NDArray[Any]) -> NDArray[Any]:
        """(C, H, W), or (H, W) where there is one channel."""
        bare = array[0] if self.batched else array
        if bare.ndim == 2:
            return bare
        moved = np.moveaxis(bare, -1, 0) if self.channels_last else bare
        return moved[0] if self.channels == 1 else moved


def _from_array(path: Path, array: NDArray[np.generic], kind: str | None) -> Scores:
    """Checked float scores (C, H, W)."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if array.dtype.kind in "ui" and kind in (None, "probabilities"):
        array = _from_bytes(array)
    if array.dtype.kind not in "fiub" or (array.dtype.kind != "f" and kind is None):
        raise ValueError(
            f"{path}: scores must be floating point; got {array.dtype}. Say what they are with --scores-are, "
            "or store labels as integers of shape (H, W)"
        )
    values: NDArray[np.floating] = array.astype(np.float32 if array.dtype.kind != "f" else array.dtype, copy=False)
    if np.isnan(values).any():
        raise _not_finite(path, values, tuple(int(i) for i in np.argwhere(np.isnan(values))[0]))
    if kind is None:
        kind = _guess_kind(path, values)
    if values.ndim == 2:
        values = _two_classes(path, values, kind)
    if kind == "probabilities":
        _check_probabilities(path, values)
    elif not np.isfinite(values).all():
        capped, wrong = capped_scores(values, negated=kind == "logits")
        if wrong is not None:
            raise _not_finite(path, values, wrong)
        values = capped
    return Scores(kind, values, np.arange(values.shape[0], dtype=np.int64))


def _not_finite(path: Path, values: NDArray[np.floating], index: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"{path}: scores must be finite; got {values[index]} at {index} of shape {values.shape}. Logits of -inf and energies "
        "of inf are taken where the pixel has a finite one"
    )


def _from_bytes(array: NDArray[Any]) -> NDArray[Any]:
    """Probabilities in 0..1 from uint8 or uint16 whose classes add up to 255 or 65535 at every pixel but for rounding, which is
    taken out; other arrays as they are."""
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3:
        return array
    whole = float(np.iinfo(array.dtype).max)
    sums = array.sum(axis=0, dtype=np.float32)
    if float(np.abs(sums - whole).max()) > min(len(array) / 2 + 0.5, whole / 4):
        return array
    scaled: NDArray[np.float32] = array / sums
    return scaled


def _guess_kind(path: Path, values: NDArray[np.floating]) -> str:
    """The one reading under which every pixel's probabilities add up to 1. Raises ValueError where there is none.

    Only a softmax, its logarithm or its negative logarithm pass; plain logits and energies look alike and never do.
    """
    if values.ndim == 3 and values.shape[0] > 1:
        numbers = values.astype(np.float32, copy=False)
        if float(numbers.min()) >= 0 and _adds_up(numbers):
            return "probabilities"
        if float(numbers.max()) <= SUM_TOLERANCE and _adds_up(np.exp(numbers)):
            return "logits"
        if float(numbers.min()) >= -SUM_TOLERANCE and _adds_up(np.exp(-numbers)):
            return "unary"
    raise ValueError(
        f"{path}: cannot tell what these scores are (range {values.min():.4g}..{values.max():.4g}): "
        "say --scores-are logits (a network's raw output), probabilities (after softmax) or unary (energies, lower is "
        "better)"
    )


def _adds_up(probabilities: NDArray[np.floating]) -> bool:
    return bool(np.all(np.abs(probabilities.sum(axis=0, dtype=np.float32) - 1) <= SUM_TOLERANCE))


def _two_classes(path: Path, foreground: NDArray[np.floating], kind: str) -> NDArray[np.floating]:
    """(2, H, W) from the foreground's (H, W)."""
    if kind == "unary":
        raise ValueError(f"{path}: a unary needs one energy a class, shape (C, H, W); got {foreground.shape}")
    if kind == "probabilities":
        _check_range(path, foreground)
        return np.stack([1 - foreground, foreground])
    return np.stack([np.zeros_like(foreground), foreground])


def _check_range(path: Path, values: NDArray[np.floating]) -> None:
    if float(values.min()) < 0 or float(values.max()) > 1 + SUM_TOLERANCE:
        raise ValueError(
            f"{path}: probabilities must lie in 0..1; got {values.min():.4g}..{values.max():.4g}. Divide those in 0..255 by 255"
        )


def _check_probabilities(path: Path, values: NDArray[np.floating]) -> None:
    _check_range(path, values)
    sums = values.sum(axis=0, dtype=np.float32)
    if not _adds_up(values):
        raise ValueError(
            f"{path}: probabilities must add up to 1 over the {values.shape[0]} classes of each pixel; "
            f"they add up to {sums.min():.4g}..{sums.max():.4g}. Raw network outputs are --scores-are logits"
        )


def _from_labels(path: Path, labels: LabelImage, num_labels: int | None, ignore_label: int | None) -> Scores:
    """Labels numbered 0..C-1 for the classes there are, unsure pixels as `UNSURE`."""
    ids = labels.ids
    if ids.size == 0:
        raise ValueError(f"{path}: labels must have pixels; got shape {ids.shape}")
    sure = ids != ignore_label if ignore_label is not None else np.ones(ids.shape, dtype=np.bool_)
    present = np.unique(ids[sure])
    if num_labels is None and len(present) < 2 and not sure.all():
        raise ValueError(
            f"{path}: besides the ignore label {ignore_label} (not known), labels hold only {present.tolist()}. "
            f"If {ignore_label} is a class, give --ignore-label none or replace it (--map-labels {ignore_label}=1); else give the "
            "number of classes with --num-labels"
        )
    if num_labels is None and ignore_label is not None and len(present) and present[-1] == LARGEST_ID:
        raise ValueError(
            f"{path}: labels hold {LARGEST_ID}, which usually means not known in 16-bit label images: give --ignore-label "
            f"{LARGEST_ID} or --map-labels {LARGEST_ID}=255. If it is a class, give --ignore-label none"
        )
    classes = present if num_labels is None else np.arange(num_labels, dtype=np.int64)
    if len(present) and (present[0] < 0 or present[-1] > classes[-1]):
        wrong = int(present[0] if present[0] < 0 else present[-1])
        row, column = (int(i) for i in np.argwhere(ids == wrong)[0])
        raise ValueError(
            f"{path}: labels must lie in 0..{classes[-1]}, or be the ignore label {ignore_label}; "
            f"got {wrong} at row {row}, column {column}"
        )
    values = np.searchsorted(classes, ids).astype(np.int32)
    values[~sure] = UNSURE
    return Scores("labels", values, classes.astype(np.int64), labels.palette)


def fits_image(scores: Scores, height: int, width: int) -> bool:
    """Whether the scores are of the image's size, or coarser ones that `fit_to_image` upsamples to it."""
    if scores.kind == "labels":
        return scores.size == (height, width)
    return _is_grid_of(scores.size, (height, width))


def fit_to_image(
    scores: Scores, height: int, width: int, *, align_corners: bool = False, name: str = "scores"
) -> Scores:
    """Scores at the image's size: coarser ones are upsampled bilinearly.

    The grid must be in proportion to the image within a cell, or square (networks that squeeze their input). Labels
    are not resized: their size must agree. align_corners: corner samples meet corner pixels, as in Caffe's Interp
    (DeepLab); False: half-pixel centres. Raises ValueError naming ``name`` where the sizes disagree.
    """
    if scores.size == (height, width):
        return scores
    if scores.kind == "labels":
        _check_label_size(name, scores.size, (height, width))
    _check_score_size(name, scores.size, (height, width))
    return replace(scores, values=upsample_bilinear(scores.values, height, width, align_corners=align_corners))


def _check_label_size(name: str, labels: Size, image: Size | None) -> None:
    """Raises ValueError where both sizes are known and differ."""
    if image is not None and labels != image:
        raise ValueError(
            f"{name}: labels are {labels[0]} x {labels[1]} (rows x columns), the image is {image[0]} x {image[1]}: must agree. "
            "Resize labels with nearest neighbour, or give the network's scores, which are upsampled"
        )


def _is_grid_of(scores: Size, image: Size) -> bool:
    """Whether a grid of scores has the image's size, or is a coarser one in proportion or a square."""
    (rows, columns), (height, width) = scores, image
    in_proportion = abs(rows * width - columns * height) <= max(height, width)
    return rows <= height and columns <= width and (in_proportion or rows == columns)


def _check_score_size(name: str, scores: Size, image: Size | None) -> None:
    """Raises ValueError where the grid of scores is not that of the image, nor a coarser one; see `fit_to_image`."""
    if image is None:
        return
    (rows, columns), (height, width) = scores, image
    if not _is_grid_of(scores, image):
        raise ValueError(
            f"{name}: scores are {rows} x {columns} (rows x columns), the image is {height} x {width}: "
            "they must be of the same size, or coarser in the same proportion"
        )


def upsample_bilinear(
    values: NDArray[np.floating] | NDArray[np.int32], height: int, width: int, *, align_corners: bool = False
) -> NDArray[np.float32]:
    """Interpolate (C, h, w) to (C, height, width) float32, h <= height and w <= width; edges are repeated."""
    channels, rows, columns = values.shape
    out = np.empty((channels, height, width), dtype=np.float32)
    box = _aligned_box(rows, columns, height, width) if align_corners else (0.0, 0.0, float(columns), float(rows))
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(values[channel], dtype=np.float32))
        out[channel] = np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return out


def _aligned_box(rows: int, columns: int, height: int, width: int) -> tuple[float, float, float, float]:
    """The region (left, top, right, bottom) whose half-pixel resize puts corner samples on corner pixels."""

    def span(old: int, new: int) -> tuple[float, float]:
        step = (old - 1) / (new - 1) if new > 1 else 0.0
        start = 0.5 - 0.5 * step
        return start, start + new * step

    left, right = span(columns, width)
    top, bottom = span(rows, height)
    return left, top, right, bottom
