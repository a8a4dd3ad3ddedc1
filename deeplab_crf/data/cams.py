"""Class activation maps in .npy files, as weakly supervised projects save them: dictionaries of the classes that are present.

The layouts are those of

- IRNet (jiwoon-ahn/irn, step/make_cam.py) and what follows it: ``{"keys": classes, "cam": coarse maps, "high_res": maps at the
  image's size}``, classes from 0 without the background, maps divided by their maximum;
- AffinityNet (jiwoon-ahn/psa, infer_cls.py) and SEAM (YudeWang/SEAM, infer_SEAM.py): ``{class: map}``, the same otherwise. After
  their own CRF ``{0: background, class + 1: map}``, which add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.data.numpy_files import StoredArray
from deeplab_crf.data.plain_pickle import read_plain_pickle

# What the projects take: eval_cam.py's threshold of IRNet, and the lower of the two exponents of AffinityNet and SEAM.
KEYED_BACKGROUND, DICT_BACKGROUND = "constant:0.15", "power:4"
_MOST_CLASSES = 4096
_ROUNDING = 1e-2  # SEAM's maps go a little below 0
SUM_TOLERANCE = 5e-3  # float16 probabilities of a few hundred classes add up to 1 within this


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """values: float32 ``(C, h, w)`` in 0..1, the background first. class_ids: their ids, which ascend."""

    values: NDArray[np.float32]
    class_ids: NDArray[np.int64]


def parse_background(text: str) -> tuple[str, float]:
    """Return the rule and the number of "constant:T" or "power:A".

    constant: the background's score is T, in 0..1. power: it is ``(1 - max over the maps) ** A``, A above 0. Raises ValueError for
    other texts.
    """
    rule, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = np.nan
    if not ((rule == "constant" and 0 <= value <= 1) or (rule == "power" and 0 < value < np.inf)):
        raise ValueError(f"cam_background must be constant:T with T in 0..1 or power:A with A above 0; got {text!r}")
    return rule, value


def read_cams(path: Path, stored: StoredArray, background: str | None = None) -> ClassMaps:
    """Return the maps of a .npy file that holds a dictionary, and the background's.

    Args:
        path: The file, for errors.
        stored: Its array.
        background: See `parse_background`. None: "constant:0.15" for maps under "keys", "power:4" for maps by class.

    Raises:
        ValueError: The file holds something else, or maps that are not in 0..1.
    """
    try:
        value = read_plain_pickle(stored.rest())
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot be read as a NumPy file: it holds Python objects, of which only class activation maps are read; "
            f"found {error}"
        ) from error
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: {_wanted()}; it holds a {type(value).__name__}")
    keyed = "keys" in value
    classes, maps = _keyed(path, value) if keyed else _by_class(path, value)
    low, high = float(maps.min(initial=0)), float(maps.max(initial=0))
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN too
        raise ValueError(
            f"{path}: class activation maps must be divided by their maximum, in 0..1; got {low:.4g}..{high:.4g}"
        )
    maps = maps.clip(0, 1)
    order = np.argsort(classes)
    if classes.min(initial=0) < 0 or len(np.unique(classes)) != len(classes):
        raise ValueError(f"{path}: classes must be different and at least 0; got {classes.tolist()}")
    if not keyed and 0 in classes and len(classes) > 1 and bool(np.all(np.abs(maps.sum(axis=0) - 1) <= SUM_TOLERANCE)):
        return ClassMaps(maps[order], classes[order])  # after a CRF, the background among them
    rule, number = parse_background(background or (KEYED_BACKGROUND if keyed else DICT_BACKGROUND))
    if rule == "constant":
        behind = np.full(maps.shape[1:], number, np.float32)
    else:
        behind = np.power(1 - maps.max(axis=0, initial=0), np.float32(number))
    return ClassMaps(np.concatenate([behind[None], maps[order]]), np.concatenate([[0], classes[order] + 1]))


def _keyed(path: Path, value: dict[Any, Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Classes and maps of IRNet's layout, of the finer ones where there are both."""
    name = "high_res" if "high_res" in value else "cam"
    try:
        classes, maps = np.asarray(value["keys"]), np.asarray(value.get(name))
        whole = classes.dtype.kind in "iu" or classes.size == 0
    except ValueError:  # lists of different lengths
        whole = False
    if not whole or classes.ndim != 1 or maps.ndim != 3 or len(maps) != len(classes) or maps.dtype.kind != "f":
        raise ValueError(f"{path}: {_wanted()}; its keys and {name} are of other shapes or types")
    if len(classes) > _MOST_CLASSES or 0 in maps.shape[1:]:
        raise ValueError(
            f"{path}: {name} must hold at most {_MOST_CLASSES} maps of at least one pixel; got {maps.shape}"
        )
    return classes.astype(np.int64), maps.astype(np.float32)


def _by_class(path: Path, value: dict[Any, Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Classes and maps of {class: map}."""
    if any(type(key) is not int for key in value) or len(value) > _MOST_CLASSES:
        raise ValueError(f"{path}: {_wanted()}; its keys are {', '.join(map(repr, list(value)[:5]))}")
    maps = list(value.values())
    if any(
        not isinstance(each, np.ndarray) or each.ndim != 2 or each.dtype.kind != "f" or each.size == 0 for each in maps
    ):
        raise ValueError(f"{path}: {_wanted()}; a value is no map (H, W) of floats")
    if len({each.shape for each in maps}) > 1:
        raise ValueError(f"{path}: the maps must be of one size; got {sorted({each.shape for each in maps})}")
    try:
        classes = np.array(list(value), dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"{path}: classes must be small numbers ({error})") from error
    return classes, np.stack(maps).astype(np.float32)


def _wanted() -> str:
    return 'class activation maps must be {"keys": classes, "high_res": (C, H, W)} or {class: (H, W)}'
