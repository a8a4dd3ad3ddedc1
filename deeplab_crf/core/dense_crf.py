"""Dense CRFs on images: features, kernels and scores put together for `MeanField`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from deeplab_crf.core.arrays import FloatArray, as_real_array, check_dtype
from deeplab_crf.core.image_points import ImagePoints
from deeplab_crf.core.mean_field import MeanField, MeanFieldResult
from deeplab_crf.core.scores import LabelOptions, energies, exactly_one, num_labels_of
from deeplab_crf.kernels import Bilateral, Gaussian, Kernel, PairwiseKernel, check_normalization
from deeplab_crf.presets import get_preset

DEFAULT_KERNELS: tuple[Kernel, ...] = (Gaussian(), Bilateral())
DEFAULT_ITERATIONS = 5
DEFAULT_NORMALIZATION = "symmetric"


class ImageCRF:
    """A dense CRF over the pixels of one image, its lattices built once: new scores (another network, another scribble) cost
    no rebuild.

    image: ``(H, W)`` or ``(H, W, channels)``, any integer or float dtype; the widths of `Bilateral` are in its units. It may be
    None if no kernel looks at colours and ``shape`` = (H, W) is given. kernels: any of `Gaussian`, `Bilateral`,
    `PairwiseKernel`. normalization: for kernels that do not name their own. dtype, threads: as in `MeanField`.
    """

    def __init__(
        self,
        image: ArrayLike | None,
        num_labels: int,
        *,
        shape: tuple[int, int] | None = None,
        kernels: Sequence[Kernel] = DEFAULT_KERNELS,
        normalization: str = DEFAULT_NORMALIZATION,
        threads: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        check_normalization(normalization)
        self._dtype = check_dtype(dtype)
        self._threads = threads
        pixels = None if image is None else _check_image(image)
        if pixels is None and shape is None:
            raise ValueError("image must be given, or shape=(H, W) if no kernel looks at colours; got neither")
        height, width = pixels.shape[:2] if pixels is not None else shape or (0, 0)
        if shape is not None and (height, width) != tuple(shape):
            raise ValueError(
                f"image must have the scores' size {shape[0]} x {shape[1]} (H x W); got {height} x {width}"
            )
        self.height, self.width = int(height), int(width)
        self._points = ImagePoints(self.height, self.width, self._dtype, threads)
        self.mean_field = MeanField(
            self.height * self.width, num_labels, dtype=self._dtype, threads=threads, order=self._points.order
        )
        for kernel in kernels:
            self.mean_field.add_kernel(
                self._features(kernel, pixels),
                kernel.compatibility,
                normalization=kernel.normalization or normalization,
            )

    def _features(self, kernel: Kernel, pixels: NDArray[Any] | None) -> NDArray[Any]:
        """The kernel's features ``(d, N)``, in the order of the walk."""
        if isinstance(kernel, PairwiseKernel):
            return self._given_features(kernel)
        if not isinstance(kernel, Gaussian | Bilateral):
            raise TypeError(f"kernels must be Gaussian, Bilateral or PairwiseKernel; got {type(kernel).__name__}")
        if isinstance(kernel, Gaussian):
            return self._points.position_features(kernel.widths_xy)
        if pixels is None:
            raise ValueError("image must be given for a Bilateral kernel; got None")
        return self._points.colour_features(kernel.widths_xy, pixels, kernel.widths_channels(pixels.shape[2]))

    def _given_features(self, kernel: PairwiseKernel) -> NDArray[Any]:
        array = as_real_array(kernel.features, "features")
        size = (self.height, self.width)
        points = self.height * self.width
        if array.ndim == 3 and array.shape[1:] == size:
            array = array.reshape(array.shape[0], -1)
        elif array.ndim == 3 and array.shape[:2] == size:
            array = array.reshape(points, -1).T
        elif array.ndim == 2 and array.shape[0] == points:
            array = array.T
        elif array.ndim != 2 or array.shape[1] != points:
            raise ValueError(
                f"features must have shape ({points}, d), (d, {points}), (d, {size[0]}, {size[1]}) or ({size[0]}, {size[1]}, d); "
                f"got {array.shape}"
            )
        return self._points.walked(array)

    def infer(
        self,
        *,
        logits: ArrayLike | None = None,
        probabilities: ArrayLike | None = None,
        unary: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        iterations: int = DEFAULT_ITERATIONS,
        damping: float = 0.0,
        tolerance: float = 0.0,
        confidence: float = 0.7,
        ignore_label: int | None = 255,
    ) -> FloatArray:
        """Probabilities ``(L, H, W)`` for one image's scores; the arguments are those of `dense_crf`."""
        source, array = exactly_one(
            {"logits": logits, "probabilities": probabilities, "unary": unary, "labels": labels}
        )
        count = self.mean_field.num_labels
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


def _check_image(image: ArrayLike) -> NDArray[Any]:
    """The image as ``(H, W, channels)``."""
    array = as_real_array(image, "image")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"image must have shape (H, W) or (H, W, channels) and at least one pixel; got shape {array.shape}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("image must be finite; got NaN or inf")
    if array.dtype == bool:
        array = array.view(np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def dense_crf(
    image: ArrayLike | None,
    *,
    logits: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    unary: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    kernels: Sequence[Kernel] | None = None,
    iterations: int | None = None,
    normalization: str | None = None,
    preset: str | None = None,
    num_labels: int | None = None,
    confidence: float = 0.7,
    ignore_label: int | None = 255,
    damping: float = 0.0,
    tolerance: float = 0.0,
    threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> FloatArray:
    """Refine what a network says about an image with a fully connected CRF (Kraehenbuehl & Koltun, NIPS 2011).

    image: ``(H, W)`` or ``(H, W, channels)``, any integer or float dtype; None if no kernel is `Bilateral`.
    Exactly one of
      logits: raw scores ``(L, H, W)``; the energies are ``-logits``.
      probabilities: ``(L, H, W)`` in 0..1; the energies are ``-log(max(p, 1e-5))``.
      unary: energies ``(L, H, W)``, negative log probabilities, lower is better.
      labels: a label map ``(H, W)`` of 0..num_labels-1, trusted with probability ``confidence``; ``ignore_label`` marks pixels
        that nobody is sure about (None: there is no such label).
    Any float dtype and strides. A leading batch dimension on scores and image refines each image by itself.

    kernels (default ``Gaussian(), Bilateral()``), iterations (5), normalization ("symmetric"): the model, or those of a
    ``preset`` (see `PRESETS`); what is given beside a preset wins. damping, tolerance: see `MeanField.inference`. threads: None
    takes `get_num_threads`. dtype: float32, or float64 for everything in double precision.

    Returns probabilities of the scores' shape (``(L, H, W)`` for labels), a view whose memory runs label by label within a pixel.
    Raises ValueError or TypeError that names the argument for wrong shapes, NaN, inf, and values out of range.
    """
    source, array = exactly_one({"logits": logits, "probabilities": probabilities, "unary": unary, "labels": labels})
    single = 2 if source == "labels" else 3
    if array.ndim not in (single, single + 1) or array.size == 0:
        shape = "(H, W)" if source == "labels" else "(labels, H, W)"
        raise ValueError(
            f"{source} must have shape {shape}, or that behind a batch dimension, and must not be empty; got shape {array.shape}"
        )
    chosen = get_preset(preset) if preset is not None else None
    if kernels is None:
        kernels = chosen.kernels if chosen else DEFAULT_KERNELS
    if iterations is None:
        iterations = chosen.iterations if chosen else DEFAULT_ITERATIONS
    if normalization is None:
        normalization = chosen.normalization if chosen else DEFAULT_NORMALIZATION
    count = num_labels_of(source, array, LabelOptions(num_labels, confidence, ignore_label))

    def refine(one_image: ArrayLike | None, scores: NDArray[Any]) -> FloatArray:
        crf = ImageCRF(
            one_image,
            count,
            shape=(scores.shape[-2], scores.shape[-1]),
            kernels=kernels,
            normalization=normalization,
            threads=threads,
            dtype=dtype,
        )
        return crf.infer(
            **{source: scores},
            iterations=iterations,
            damping=damping,
            tolerance=tolerance,
            confidence=confidence,
            ignore_label=ignore_label,
        )

    if array.ndim == single:
        return refine(image, array)
    images = [None] * len(array) if image is None else as_real_array(image, "image")
    if len(images) != len(array):
        raise ValueError(f"image must hold a batch of {len(array)} images as {source} does; got {len(images)}")
    return np.stack([refine(one_image, scores) for one_image, scores in zip(images, array, strict=True)])
