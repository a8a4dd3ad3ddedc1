"""The images that a CRF is tuned on: saved scores, labels, and all that settings share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from deeplab_crf.core.arrays import FloatArray
from deeplab_crf.core.image_crf import ImageCRF
from deeplab_crf.core.image_points import ImagePoints
from deeplab_crf.core.lattice import PermutohedralLattice
from deeplab_crf.core.mean_field import pack_unary
from deeplab_crf.core.presets import Preset
from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.evaluation.saved_scores import SavedScores
from deeplab_crf.runtime.checks import whole_number
from deeplab_crf.runtime.locks import ForkSafeLock

FLOAT = np.dtype(np.float32)

# Bytes of prepared images in the cache; further images are prepared again each time.
_LARGEST_CACHE = 2 * 2**30

Result = TypeVar("Result")


def spread_evenly(count: int, wanted: int | None) -> tuple[int, ...]:
    """Choose ``wanted`` of the numbers 0..count-1 at equal distances; None: all.

    Raises:
        ValueError: There are fewer than ``wanted``.
    """
    if wanted is None:
        return tuple(range(count))
    whole_number(wanted, "images", 1, count)
    return tuple(int(i) for i in np.linspace(0, count - 1, wanted).round())


@dataclass(eq=False)
class PreparedImage:
    """All that settings share of an image of N = H·W pixels and L classes.

    Args:
        name: The image's name.
        pixels: uint8 ``(H, W, 3)``.
        scores: The coarse scores.
        labels: uint8 ``(H, W)``, 255 where nothing is scored.
        unary: Energies ``(L, N)`` for `MeanField`.
        points: Tile order and features.
    """

    name: str
    pixels: NDArray[np.uint8]
    scores: SavedScores
    labels: NDArray[np.uint8]
    unary: FloatArray
    points: ImagePoints
    _gaussians: dict[float, PermutohedralLattice] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """The approximate memory of this and of one Gaussian lattice.

        A lattice takes 24 bytes a pixel for rows and weights, and 4 for norms.
        """
        return self.unary.nbytes + self.pixels.nbytes + (self.labels.nbytes + 28 * self.labels.size)

    def gaussian_lattice(self, sxy: float) -> PermutohedralLattice:
        """Return the lattice over positions, from the cache if it is there."""
        lattice = self._gaussians.get(sxy)
        if lattice is None:
            lattice = PermutohedralLattice(self.points.position_features((sxy, sxy)).T, threads=1)
            self._gaussians[sxy] = lattice
        return lattice

    def bilateral_lattice(self, sxy: float, srgb: float) -> PermutohedralLattice:
        """Build the lattice over positions and colours."""
        features = self.points.colour_features((sxy, sxy), self.pixels, (srgb, srgb, srgb))
        return PermutohedralLattice(features.T, threads=1)

    def confusion(self, values: FloatArray) -> ConfusionMatrix:
        """Return the confusion matrix of the labels that probabilities or scores ``(L, N)`` give."""
        matrix = ConfusionMatrix(len(values))
        matrix.add(values.argmax(axis=0).reshape(self.labels.shape), self.labels)
        return matrix


class TuneImages:
    """Part of a data set with the network's scores.

    Args:
        dataset: Images and labels.
        indices: Which of them.
        scores: The scores of each, in the same order.
        scored: Sets labels to 255 where nothing is scored (outside a trimap's band); None: all
            count.
        threads: The number of threads, each of which processes an image at a time.
    """

    def __init__(
        self,
        dataset: SegmentationFolder,
        indices: Sequence[int],
        scores: Sequence[SavedScores],
        *,
        scored: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
        threads: int = 1,
    ) -> None:
        if not indices:
            raise ValueError("images must hold at least one image; got none")
        if len(scores) != len(indices):
            raise ValueError(f"scores must be those of the {len(indices)} images; got {len(scores)}")
        self.dataset, self.indices, self.threads = dataset, tuple(indices), threads
        self.num_classes = len(dataset.classes)
        self._scores, self._scored = tuple(scores), scored
        self._cache: dict[int, PreparedImage] = {}
        self._cached_bytes = 0
        self._lock = ForkSafeLock()

    def __len__(self) -> int:
        return len(self.indices)

    def prepare(self, number: int) -> PreparedImage:
        """Read an image and upsample its scores, or return it from the cache. Safe in any thread."""
        cached = self._cache.get(number)
        if cached is not None:
            return cached
        example = self.dataset[self.indices[number]]
        height, width = example.labels.shape
        coarse = self._scores[number]
        logits = coarse.logits((height, width), Path(example.name)).numpy()
        prepared = PreparedImage(
            example.name,
            example.image,
            coarse,
            example.labels if self._scored is None else self._scored(example.labels),
            pack_unary(logits.reshape(self.num_classes, -1), name=f"scores of {example.name}", negate=True, threads=1),
            ImagePoints(height, width, FLOAT, 1),
        )
        with self._lock:
            if number not in self._cache and self._cached_bytes + prepared.num_bytes <= _LARGEST_CACHE:
                self._cache[number] = prepared
                self._cached_bytes += prepared.num_bytes
        return prepared

    def for_each(
        self, work: Callable[[PreparedImage], Result], done: Callable[[Result], None], progress: Callable[[], None]
    ) -> None:
        """Process all images side by side. The first error or Ctrl-C stops the images that wait.

        Args:
            work: Called with each image, in a thread of the pool.
            done: Called in this thread with each result, in any order.
            progress: Called after each image.
        """
        pool = ThreadPoolExecutor(min(self.threads, len(self)))
        try:
            futures = [pool.submit(lambda i=i: work(self.prepare(i))) for i in range(len(self))]  # type: ignore[misc]
            for future in as_completed(futures):
                done(future.result())
                progress()
        finally:
            pool.shutdown(cancel_futures=True)

    def measure(self, preset: Preset | None, progress: Callable[[], None] = lambda: None) -> ConfusionMatrix:
        """Return the confusion matrix over all images.

        Args:
            preset: The CRF; None: the network alone.
            progress: Called after each image.

        Raises:
            ValueError: Scored pixels are missing, or those of one class only.
        """

        def confusion(image: PreparedImage) -> ConfusionMatrix:
            if preset is None:
                return image.confusion(-image.unary)
            crf = ImageCRF(
                image.pixels,
                self.num_classes,
                kernels=preset.kernels,
                normalization=preset.normalization,
                threads=1,
            )
            found = crf.mean_field.inference(image.unary, preset.iterations, check_finite=False)
            return image.confusion(found.probabilities)

        total = ConfusionMatrix(self.num_classes)
        self.for_each(confusion, total.merge, progress)
        if total.num_pixels == 0:
            raise ValueError(
                f"labels must hold pixels to score; got none in {len(self)} images (of a trimap: none near its edges)"
            )
        if len(total.unlabelled) >= total.num_classes - 1:
            raise ValueError(
                f"labels must hold two classes at least, since one alone is always right; got one in {len(self)} images"
            )
        return total


def as_tensors(image: PreparedImage) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convert an image for `DenseCRF` and losses.

    Returns:
        Logits ``(1, L, H, W)``, image ``(1, 3, H, W)`` and labels int64 ``(1, H, W)``.
    """
    height, width = image.labels.shape
    logits = image.scores.logits((height, width), Path(image.name))
    pixels = torch.from_numpy(np.ascontiguousarray(image.pixels.transpose(2, 0, 1)))
    return logits[None], pixels[None], torch.from_numpy(image.labels.astype(np.int64))[None]
