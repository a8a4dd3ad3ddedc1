"""Network scores kept on disk, one small file an image: what `evaluate` saves and reads, and `tune` searches on.

NAME.npz holds

- ``scores``: float16 ``(C, h, w)``, logits at the network's output stride (8; MSc variants, and networks that do not align corners,
  1), score ``[c, i, j]`` over pixel
  ``(8 i, 8 j)``: corners are aligned;
- ``size``: int64 ``(2,)``, rows and columns of the padded picture that the network saw, ``8 (h - 1) + 1`` and ``8 (w - 1) + 1``;
- ``seen``: int64 ``(2,)``, rows and columns of its upper left part that is the photograph, which was resized to this. Absent: the
  photograph as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.core.energies import LARGEST_ENERGY, capped_scores
from deeplab_crf.data.numpy_files import stored_arrays
from deeplab_crf.models.interp import image_scores
from deeplab_crf.runtime.files import atomic_write

_KEYS = ("scores", "size")
LARGEST_SIDE = 2**15  # of a padded picture, in pixels
LARGEST_FILE = 2**31  # bytes of the scores in a file
LARGEST_PADDING = 2**24  # pixels of a padded picture; more only up to 16 times those of the photograph
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class SavedScores:
    """values: float16 ``(C, h, w)``. size: rows and columns of the padded picture. seen: of the photograph in it, resized; None:
    as it is."""

    values: NDArray[np.float16]
    size: tuple[int, int]
    seen: tuple[int, int] | None = None

    def logits(self, image_size: tuple[int, int], path: Path, device: torch.device | None = None) -> Tensor:
        """Float32 ``(C, H, W)`` for the pixels of the photograph, upsampled as DeepLab does, on ``device``. Raises ValueError as
        `seen_of`."""
        seen = self.seen_of(image_size, path)
        values = torch.from_numpy(self.values.astype(np.float32)).to(device).clamp_(min=-LARGEST_ENERGY)
        return image_scores(values[None], self.size, seen, image_size)[0].contiguous()

    def seen_of(self, image_size: tuple[int, int], path: Path) -> tuple[int, int]:
        """Rows and columns of the photograph in the picture. Raises ValueError that names the file where one of ``image_size``
        cannot be part of it."""
        seen = image_size if self.seen is None else self.seen
        bent = abs(seen[0] * image_size[1] - seen[1] * image_size[0]) > max(
            *seen, *image_size
        )  # more than a pixel's rounding
        if seen[0] > self.size[0] or seen[1] > self.size[1] or bent:
            raise ValueError(
                f"{path}: scores are of a picture of {self.size[0]} x {self.size[1]} (rows x columns), padding included, of which "
                f"{seen[0]} x {seen[1]} are the photograph; the image has {image_size[0]} x {image_size[1]}. Another image's?"
            )
        if seen == image_size and math.prod(self.size) > max(LARGEST_PADDING, 16 * math.prod(image_size)):
            raise ValueError(
                f"{path}: scores are of a picture of {self.size[0]} x {self.size[1]}, of which the image, {image_size[0]} x "
                f"{image_size[1]}, is too small a part"
            )
        return seen


def write_saved_scores(
    path: Path, scores: NDArray[Any], size: tuple[int, int], seen: tuple[int, int] | None = None
) -> None:
    """Write logits ``(C, h, w)`` of a picture padded to ``size``, in which the photograph takes ``seen`` (None: it is as it was);
    the file appears whole or not at all. Raises ValueError for numbers that float16 cannot hold."""
    largest = float(np.abs(scores).max(initial=0))
    if not largest <= _LARGEST:  # NaN too
        raise ValueError(f"{path}: scores must be within +-{_LARGEST:g} to be kept as float16; got {largest:g}")
    with atomic_write(path) as stream:
        arrays: dict[str, Any] = {"scores": scores.astype(np.float16), "size": np.array(size, np.int64)}
        if seen is not None:
            arrays["seen"] = np.array(seen, np.int64)
        np.savez(stream, **arrays)


def read_saved_scores(path: Path) -> SavedScores | None:
    """What `write_saved_scores` wrote; None for a file of another kind. Raises ValueError that names a damaged file, before memory
    is taken for more than `LARGEST_FILE` bytes."""
    if path.suffix.lower() != ".npz":
        return None
    with stored_arrays(path) as stored:
        if any(key not in stored for key in _KEYS):
            return None
        scores, pairs = stored["scores"], [stored[key] for key in ("size", "seen") if key in stored]
        if (
            len(scores.shape) != 3
            or 0 in scores.shape
            or scores.dtype.kind != "f"
            or any(each.shape != (2,) or each.dtype.kind != "i" for each in pairs)
        ):
            found = ", ".join(f"{each.dtype} of shape {each.shape}" for each in pairs)
            raise ValueError(
                f"{path}: scores must be floats of shape (C, h, w), size and seen two whole numbers; got {scores.dtype} of shape "
                f"{scores.shape} and {found}"
            )
        (rows, columns), *seen = ([int(value) for value in each.read()] for each in pairs)
        if rows < scores.shape[1] or columns < scores.shape[2]:
            raise ValueError(
                f"{path}: size must be no less than that of the scores, {scores.shape[1:]}; got {(rows, columns)}"
            )
        if max(rows, columns) > LARGEST_SIDE or math.prod(scores.shape) * scores.dtype.itemsize > LARGEST_FILE:
            raise ValueError(
                f"{path}: scores must take at most {LARGEST_FILE} bytes, of pictures of at most {LARGEST_SIDE} pixels a side; got "
                f"{scores.dtype} of shape {scores.shape} of {rows} x {columns} pixels"
            )
        values = scores.read()
    if capped_scores(values, negated=True)[1] is not None:
        raise ValueError(f"{path}: scores must be finite, or -inf where the pixel has a finite one; got NaN or inf")
    return SavedScores(values, (rows, columns), (seen[0][0], seen[0][1]) if seen else None)
