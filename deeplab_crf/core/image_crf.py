"""Dense CRFs on images: features, kernels and scores put together for `MeanField`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from deeplab_crf.core.arrays import FloatArray, as_real_array, check_dtype
from deeplab_crf.core.image_points import ImagePoints
from deeplab_crf.core.image_range import (
    BYTES,
    ImageRange,
    check_image_range,
    is_whole,
    map_to_bytes,
    resolve_image_range,
)
from deeplab_crf.core.mean_field import MeanField, MeanFieldResult
from deeplab_crf.core.pairwise import Bilateral, Gaussian, Kernel, PairwiseKernel, check_normalization
from deeplab_crf.core.presets import Preset, get_preset
from deeplab_crf.core.scores import (
    LabelOptions,
    check_batch,
    check_label_kind,
    check_scores_shape,
    check_several_labels,
    energies,
    exactly_one,
    num_labels_of,
)
from deeplab_crf.runtime.checks import items_of, shown, whole_number
from deeplab_crf.runtime.threads import check_threads

_DEFAULTS = get_preset("pydensecrf")


@dataclass(frozen=True)
class Refinement:
    """What is asked of `dense_crf` beside image and scores. model: kernels, iterations and normalization. The rest as there."""

    model: Preset
    labels: LabelOptions
    damping: float
    tolerance: float
    threads: int | None
    dtype: np.dtype[Any]
    image_range: ImageRange | None


class ImageCRF:
    """A dense CRF over the pixels of one image, its lattices built once: new scores (another network, another scribble) cost
    no rebuild.

    image: ``(H, W)`` or ``(H, W, channels)``, any integer or float dtype. It may be None if no kernel looks at colours and
    ``shape`` = (H, W) is given. kernels: any of `Gaussian`, `Bilateral`, `PairwiseKernel`. normalization: for kernels that do
    not name their own. dtype, threads: as in `MeanField`. image_range: as in `dense_crf`.
    """

    def __init__(
        self,
        image: ArrayLike | None,
        num_labels: int,
        *,
        shape: tuple[int, int] | None = None,
        kernels: Sequence[Kernel] = _DEFAULTS.kernels,
        normalization: str = _DEFAULTS.normalization,
        threads: int | None = None,
        dtype: DTypeLike = np.float32,
        image_range: Sequence[float] | None = None,
    ) -> None:
        check_normalization(normalization)
        self._dtype = check_dtype(dtype)
        self._threads = None if threads is None else check_threads(threads)
        chosen = items_of(kernels, "kernels", "Gaussian, Bilateral or PairwiseKernel")
        pixels = None if image is None else _check_image(image)
        if pixels is None and shape is None:
            raise ValueError("image must be given, or shape=(H, W) if no kernel looks at colours; got neither")
        self.height, self.width = pixels.shape[:2] if pixels is not None else _check_shape(shape)
        if shape is not None:
            check_image_size(pixels.shape if pixels is not None else (self.height, self.width), _check_shape(shape))
        if pixels is not None:
            pixels = _in_bytes(pixels, range_of_array(pixels, image_range, chosen), self._dtype)
        self._points = ImagePoints(self.height, self.width, self._dtype, threads)
        self.mean_field = MeanField(
            self.height * self.width, num_labels, dtype=self._dtype, threads=threads, order=self._points.order
        )
        for kernel in chosen:
            self.mean_field.add_kernel(
                self._features(kernel, pixels),
                kernel.compatibility,
                normalization=kernel.normalization or normalization,
            )

    def _features(self, kernel: Kernel, pixels: NDArray[Any] | None) -> NDArray[Any]:
        """The kernel's features ``(d, N)``, in the order of the walk."""
        if isinstance(kernel, PairwiseKernel):
            array = as_real_array(kernel.features, "features")
            return self._points.walked(features_first(array, self.height, self.width))
        check_kernel(kernel, pixels is not None)
        if isinstance(kernel, Gaussian):
            return self._points.position_features(kernel.widths_xy)
        assert pixels is not None  # check_kernel
        return self._points.colour_features(kernel.widths_xy, pixels, kernel.widths_channels(pixels.shape[2]))

    def infer(
        self,
        *,
        logits: ArrayLike | None = None,
        probabilities: ArrayLike | None = None,
        unary: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        iterations: int = _DEFAULTS.iterations,
        damping: float = 0.0,
        tolerance: float = 0.0,
        confidence: float = 0.7,
        ignore_label: int | None = 255,
    ) -> FloatArray:
        """Probabilities ``(L, H, W)`` for one image's scores; the arguments are those of `dense_crf`."""
        scores = {"logits": logits, "probabilities": probabilities, "unary": unary, "labels": labels}
        source = exactly_one(scores)
        array = as_real_array(scores[source], source)  # type: ignore[arg-type]  # is not None
        count = self.mean_field.num_labels
        check_several_labels("num_labels", count)
        expected = (self.height, self.width) if source == "labels" else (count, self.height, self.width)
        if array.shape != expected:
            raise ValueError(f"{source} must have shape {expected}; got {array.shape}")
        options = LabelOptions(count, confidence, ignore_label)
        packed = energies(source, array, count, options, self._dtype, self._threads)
        result = self.mean_field.inference(packed, iterations, damping=damping, tolerance=tolerance, check_finite=False)
        return self._as_image(result)

    def _as_image(self, result: MeanFieldResult) -> FloatArray:
        """``(L, N)`` as ``(L, H, W)``, without a copy."""
        return result.probabilities.T.reshape(self.height, self.width, -1).transpose(2, 0, 1)


def check_image_shape(shape: Sequence[int]) -> None:
    """Raises ValueError unless this is the shape of one image."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"image must have shape (H, W) or (H, W, channels) and at least one pixel; got shape {tuple(shape)}"
        )


def check_image_size(image: Sequence[int], wanted: Sequence[int]) -> None:
    """Raises ValueError unless an image of the shape ``(H, W)`` or ``(H, W, channels)`` has the scores' size ``wanted`` (H, W)."""
    if tuple(image[:2]) == tuple(wanted):
        return
    cure = ""
    if tuple(image[1:]) == tuple(wanted):
        cure = ". Move its channels last, as in np.moveaxis(image, 0, -1)"
    elif image[1] == wanted[0] and image[0] != wanted[1]:
        cure = ". If the scores end with their labels, move these first, as in np.moveaxis(scores, -1, 0)"
    raise ValueError(
        f"image must have the scores' size {wanted[0]} x {wanted[1]} (H x W); got {image[0]} x {image[1]}{cure}"
    )


def check_kernel(kernel: Kernel, has_image: bool) -> None:
    """Raises unless this is a kernel, and one that the arguments suffice for."""
    if not isinstance(kernel, Gaussian | Bilateral | PairwiseKernel):
        raise TypeError(f"kernels must be Gaussian, Bilateral or PairwiseKernel; got {type(kernel).__name__}")
    if isinstance(kernel, Bilateral) and not has_image:
        raise ValueError("image must be given for a Bilateral kernel; got None")


def features_first(features: Any, height: int, width: int) -> Any:
    """The features of a `PairwiseKernel`, an array or a tensor, as ``(d, N)``."""
    points, shape = height * width, tuple(features.shape)
    if len(shape) == 3 and shape[1:] == (height, width):
        return features.reshape(shape[0], -1)
    if len(shape) == 3 and shape[:2] == (height, width):
        return features.reshape(points, -1).T
    if len(shape) == 2 and shape[0] == points:
        return features.T
    if len(shape) == 2 and shape[1] == points:
        return features
    raise ValueError(
        f"features must have shape ({points}, d), (d, {points}), (d, {height}, {width}) or ({height}, {width}, d); got {shape}"
    )


def _check_shape(shape: Sequence[int] | None) -> tuple[int, int]:
    """``shape`` as (H, W), at least one pixel and no more than the engine can number."""
    sizes = items_of(shape, "shape", "two whole numbers (H, W)")  # type: ignore[arg-type]
    if len(sizes) != 2:
        raise ValueError(f"shape must be (H, W); got {shown(shape)}")
    height, width = (whole_number(size, "shape", 1) for size in sizes)
    whole_number(height * width, "shape's number of pixels", 1)
    return height, width


def _check_image(image: ArrayLike) -> NDArray[Any]:
    """The image as ``(H, W, channels)``."""
    array = as_real_array(image, "image")
    check_image_shape(array.shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("image must be finite; got NaN or inf")
    return array[:, :, None] if array.ndim == 2 else array


def colour_widths(kernels: Sequence[Kernel]) -> list[float]:
    """The colour widths of all `Bilateral` kernels."""
    return [width for kernel in kernels if isinstance(kernel, Bilateral) for width in np.ravel(kernel.srgb).tolist()]


def range_of_array(
    image: NDArray[Any], image_range: Sequence[float] | None, kernels: Sequence[Kernel]
) -> ImageRange | None:
    """The image's values of black and white, see `resolve_image_range`; None if no kernel looks at colours."""
    widths = colour_widths(kernels)
    if not widths or image.size == 0:
        return check_image_range(image_range)
    return resolve_image_range(
        image_range,
        image.dtype,
        lambda: (float(image.min()), float(image.max())),
        widths=widths,
        whole=lambda: is_whole(image),
    )


def _in_bytes(image: NDArray[Any], image_range: ImageRange | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The image in the units of the colour widths, 0..255."""
    if image_range is None or image_range == BYTES:
        return image
    with np.errstate(over="ignore", invalid="ignore"):  # the lattice refuses what is not finite
        scaled: NDArray[Any] = map_to_bytes(image.astype(dtype), image_range)
    return scaled


def refine_arrays(image: ArrayLike | None, scores: Mapping[str, ArrayLike | None], what: Refinement) -> FloatArray:
    """`dense_crf` on the CPU."""
    source = exactly_one(scores)
    array = as_real_array(scores[source], source)  # type: ignore[arg-type]  # is not None
    images = None if image is None else as_real_array(image, "image")
    batched = check_scores_shape(source, array.shape, None if images is None else images.shape)
    if source == "labels":
        check_label_kind(array.dtype.kind in "biu", array.dtype)
    count = num_labels_of(source, array, what.labels)

    def refine(one_image: ArrayLike | None, one: NDArray[Any], image_range: ImageRange | None) -> FloatArray:
        crf = ImageCRF(
            one_image,
            count,
            shape=(one.shape[-2], one.shape[-1]),
            kernels=what.model.kernels,
            normalization=what.model.normalization,
            threads=what.threads,
            dtype=what.dtype,
            image_range=image_range,
        )
        return crf.infer(
            **{source: one},
            iterations=what.model.iterations,
            damping=what.damping,
            tolerance=what.tolerance,
            confidence=what.labels.confidence,
            ignore_label=what.labels.ignore_label,
        )

    if not batched:
        return refine(images, array, what.image_range)
    if images is None:
        return np.stack([refine(None, one, None) for one in array])
    check_batch(source, array.shape, images.shape)
    # One for all: a dark image does not tell its range.
    image_range = range_of_array(images, what.image_range, what.model.kernels)
    return np.stack([refine(one_image, one, image_range) for one_image, one in zip(images, array, strict=True)])
