"""Network scores on disk, one small file for each image: `evaluate` saves and reads them, `tune` searches on them.

NAME.npz holds

- ``scores``: float16 ``(C, h, w)``, logits at the network's output stride (8; 1 of MSc variants and of networks that do not
  align corners); score ``[c, i, j]`` is that of pixel ``(8 i, 8 j)``: corners are aligned;
- ``size``: int64 ``(2,)``, rows and columns of the padded image that the network saw, ``8 (h - 1) + 1`` and ``8 (w - 1) + 1``;
- ``seen``: int64 ``(2,)``, rows and columns of its upper left part, the image resized for the network. Absent: the image was not
  resized.
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
LARGEST_SIDE = 2**15  # of a padded image, in pixels
LARGEST_FILE = 2**31  # bytes of the scores in a file
LARGEST_PADDING = 2**24  # pixels of a padded image; more only up to 16 times those of the image
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class SavedScores:
    """The scores of one image.

    Args:
        values: Logits, float16 ``(C, h, w)``.
        size: Rows and columns of the padded image that the network saw.
        seen: Rows and columns of the resized image in it; None: the image was not resized.
    """

    values: NDArray[np.float16]
    size: tuple[int, int]
    seen: tuple[int, int] | None = None

    def logits(self, image_size: tuple[int, int], path: Path, device: torch.device | None = None) -> Tensor:
        """Return the scores upsampled to the image's pixels, as DeepLab does.

        Args:
            image_size: Rows and columns of the image, H and W.
            path: The file of the scores, for errors.
            device: The device of the result.

        Returns:
            Logits, float32 ``(C, H, W)``.

        Raises:
            ValueError: As `seen_of`.
        """
        seen = self.seen_of(image_size, path)
        values = torch.from_numpy(self.values.astype(np.float32)).to(device).clamp_(min=-LARGEST_ENERGY)
        return image_scores(values[None], self.size, seen, image_size)[0].contiguous()

    def seen_of(self, image_size: tuple[int, int], path: Path) -> tuple[int, int]:
        """Return rows and columns of the image as the network saw it.

        Raises:
            ValueError: The padded image cannot hold one of ``image_size``; the error names ``path``.
        """
        seen = image_size if self.seen is None else self.seen
        bent = abs(seen[0] * image_size[1] - seen[1] * image_size[0]) > max(
            *seen, *image_size
        )  # more than a pixel's rounding
        if seen[0] > self.size[0] or seen[1] > self.size[1] or bent:
            raise ValueError(
                f"{path}: scores are of an image of {self.size[0]} x {self.size[1]} (rows x columns), padding included, of which "
                f"{seen[0]} x {seen[1]} are the image itself; this image has {image_size[0]} x {image_size[1]}. Another image's?"
            )
        if seen == image_size and math.prod(self.size) > max(LARGEST_PADDING, 16 * math.prod(image_size)):
            raise ValueError(
                f"{path}: scores are of an image of {self.size[0]} x {self.size[1]}, of which this image, {image_size[0]} x "
                f"{image_size[1]}, is too small a part"
            )
        return seen


def write_saved_scores(
    path: Path, scores: NDArray[Any], size: tuple[int, int], seen: tuple[int, int] | None = None
) -> None:
    """Write the scores of one image; the file appears whole or not at all.

    Args:
        path: The file, NAME.npz.
        scores: Logits ``(C, h, w)`` of the padded image.
        size: Rows and columns of the padded image.
        seen: Rows and columns of the resized image in it; None: the image was not resized.

    Raises:
        ValueError: float16 cannot hold the scores.
    """
    largest = float(np.abs(scores).max(initial=0))
    if not largest <= _LARGEST:  # NaN too
        raise ValueError(f"{path}: scores must be within +-{_LARGEST:g} to be kept as float16; got {largest:g}")
    with atomic_write(path) as stream:
        arrays: dict[str, Any] = {"scores": scores.astype(np.float16), "size": np.array(size, np.int64)}
        if seen is not None:
            arrays["seen"] = np.array(seen, np.int64)
        np.savez(stream, **arrays)


def read_saved_scores(path: Path) -> SavedScores | None:
    """Read what `write_saved_scores` wrote.

    Returns:
        The scores, or None for a file of another kind.

    Raises:
        ValueError: The file is damaged, or would take more than `LARGEST_FILE` bytes; it is refused before memory is allocated.
    """
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
                f"{path}: scores must take at most {LARGEST_FILE} bytes, of images of at most {LARGEST_SIDE} pixels a side; got "
                f"{scores.dtype} of shape {scores.shape} of {rows} x {columns} pixels"
            )
        values = scores.read()
    if capped_scores(values, negated=True)[1] is not None:
        raise ValueError(f"{path}: scores must be finite, or -inf where the pixel has a finite one; got NaN or inf")
    return SavedScores(values, (rows, columns), (seen[0][0], seen[0][1]) if seen else None)
