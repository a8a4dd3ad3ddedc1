"""A network's scores at its own resolution: read from what ``deeplab-crf evaluate --save-scores`` wrote, or computed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.models.interp import interp
from deeplab_crf.models.pipeline import SegmentationPipeline


@dataclass(frozen=True, eq=False)
class CoarseScores:
    """values: floats ``(C, h, w)``, before any softmax. size: rows and columns (H, W) of the padded image that they stand for, corner
    samples on corner pixels."""

    values: NDArray[np.floating[Any]]
    size: tuple[int, int]


def full_scores(coarse: CoarseScores, height: int, width: int) -> NDArray[np.float32]:
    """Scores ``(C, height, width)``, upsampled as DeepLab does: to the padded size, then without the padding."""
    values = torch.from_numpy(coarse.values.astype(np.float32))
    return interp(values[None], coarse.size)[0, :, :height, :width].contiguous().numpy()


def read_scores(
    folder: Path, dataset: SegmentationFolder, indices: Sequence[int]
) -> tuple[list[Path], list[CoarseScores]]:
    """The files of these photographs in ``folder``, ``<stem>.npz`` with "scores" ``(C, h, w)`` and "size" (H, W), and what they hold.

    Raises ValueError that names the file: one that is missing (all are looked for before one is read), or cannot be read, or has
    other shapes or another number of classes than the data set, or NaN or inf.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of scores; deeplab-crf evaluate --save-scores writes one")
    files = [folder / f"{dataset.items[i].name}.npz" for i in indices]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]}: no such file; scores of {len(missing)} of {len(files)} images are missing. "
            "Save those of this split: deeplab-crf evaluate --save-scores"
        )
    return files, [_read(path, len(dataset.classes)) for path in files]


def _read(path: Path, classes: int) -> CoarseScores:
    try:
        with np.load(path, allow_pickle=False) as stored:
            values, size = stored["scores"], stored["size"]
    except KeyError as error:
        raise ValueError(f'{path}: must hold "scores" and "size"; got no {error.args[0]}') from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as .npz ({error})") from error
    if values.dtype.kind != "f" or values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"{path}: scores must be floats (C, h, w); got {values.dtype} of shape {values.shape}")
    if len(values) != classes:
        raise ValueError(f"{path}: scores must have the {classes} classes of the data set; got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: scores must be finite; got NaN or inf")
    if size.dtype.kind not in "iu" or size.shape != (2,) or (size < values.shape[1:]).any():
        raise ValueError(f"{path}: size must be rows and columns, no less than those of the scores; got {size!r}")
    return CoarseScores(values, (int(size[0]), int(size[1])))


@torch.no_grad()
def compute_scores(pipeline: SegmentationPipeline, images: Iterable[NDArray[Any]]) -> Iterator[CoarseScores]:
    """The scores of a network in evaluation mode for RGB images ``(H, W, 3)``, one after the other, as `read_scores` gives them."""
    network = pipeline.network.eval()
    for image in images:
        picture = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        scores = network.scores(pipeline.preprocess(picture))
        yield CoarseScores(scores.fused[0].numpy().astype(np.float16), scores.size)
