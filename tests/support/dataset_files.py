"""Small data sets on disk for tests: images with flat regions, labels that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from samples import photo

CLASSES = ("ground", "sky", "thing")


def write_pair(root: Path, name: str, size: tuple[int, int], seed: int, split: str = "train") -> None:
    """``images/SPLIT/NAME.png`` and ``labels/SPLIT/NAME.png``: classes 0, 1, 2 and some void, which the colours show."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(rng.integers(0, len(CLASSES), (size[0] // 8 + 1, size[1] // 8 + 1)), 8, 0), 8, 1)
    labels = labels[: size[0], : size[1]].astype(np.uint8)
    image = photo(*size, seed=seed) // 2 + 40 * labels[:, :, None]
    labels[rng.random(labels.shape) < 0.05] = 255
    for kind, array in (("images", image), ("labels", labels)):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / kind / split / f"{name}.png")


def write_folder(
    root: Path, train: int = 5, val: int = 2, size: tuple[int, int] = (40, 48), names: Sequence[str] = CLASSES
) -> Path:
    """A data set of the kind "folder" with the splits train and val."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            write_pair(root, f"{split}{i}", size, seed=100 * (split == "val") + i, split=split)
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root
