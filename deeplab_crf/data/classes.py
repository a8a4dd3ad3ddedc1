"""Names of classes and their colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor",
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip

# Red, green, blue of each, as CamVid is shown everywhere.
CAMVID_PALETTE = (
    128, 128, 128, 128, 0, 0, 192, 192, 128, 128, 64, 128, 60, 40, 222, 128, 128, 0,
    192, 128, 128, 64, 64, 128, 64, 0, 128, 64, 64, 0, 0, 128, 192,
)  # fmt: skip


def class_palette(names: Sequence[str]) -> tuple[int, ...] | None:
    """The customary colours of these classes, R, G, B, R, G, B, ...; None: PASCAL VOC's colours do."""
    return CAMVID_PALETTE if tuple(names) == CAMVID_CLASSES else None


def class_names(count: int) -> tuple[str, ...]:
    """PASCAL VOC's names where there are 21 classes, else "class 0", "class 1", ..."""
    return VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class {i}" for i in range(count))


def voc_palette(count: int) -> tuple[int, ...]:
    """The PASCAL VOC colours of ids 0..count-1 as R, G, B, R, G, B, ...: distinct for ids below 2^24, black for 0."""
    ids = np.arange(count, dtype=np.int64)
    colours = np.zeros((count, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return tuple(colours.ravel().tolist())
