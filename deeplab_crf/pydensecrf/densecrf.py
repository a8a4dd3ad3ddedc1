"""``pydensecrf.densecrf``: the classes that scripts call, on this package's engine.

Signs: unaries are energies (negative log probabilities). A number as ``compat`` is a Potts weight w and adds ``-w K Q``
to the energy; a 1-D array v adds ``+v * K Q`` and a 2-D M adds ``+(M + M.T) / 2 @ K Q``, so 2, [-2, -2, ...] and -2 I
are the same model.
Axis order: width before height in the constructor and in ``sxy``, labels before points in every array.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplab_crf.core.image_points import ImagePoints
from deeplab_crf.core.mean_field import pack_unary
from deeplab_crf.pydensecrf._checks import (
    check_finite,
    check_units,
    compatibility,
    flatten_points,
    real_array,
    whole_number,
    widths,
)
from deeplab_crf.pydensecrf._device import make_mean_field

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
]

Float32Array = NDArray[np.float32]
_Enumeration = TypeVar("_Enumeration", bound=IntEnum)


class KernelType(IntEnum):
    """The form of a kernel's precision matrix. It matters for learning only; inference is the same with all three."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """How a filter's output is normalised. NO_NORMALIZATION applies nothing at all: the lattice's own scale shows."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL = KernelType.CONST_KERNEL
DIAG_KERNEL = KernelType.DIAG_KERNEL
FULL_KERNEL = KernelType.FULL_KERNEL
NO_NORMALIZATION = NormalizationType.NO_NORMALIZATION
NORMALIZE_BEFORE = NormalizationType.NORMALIZE_BEFORE
NORMALIZE_AFTER = NormalizationType.NORMALIZE_AFTER
NORMALIZE_SYMMETRIC = NormalizationType.NORMALIZE_SYMMETRIC

_ENGINE_NORMALIZATIONS = {
    NO_NORMALIZATION: "none",
    NORMALIZE_BEFORE: "before",
    NORMALIZE_AFTER: "after",
    NORMALIZE_SYMMETRIC: "symmetric",
}


class Unary:
    """Unary energies of a CRF: a `ConstUnary` or a `LogisticUnary`. One object can serve any number of CRFs."""

    def _energies(self) -> Float32Array:
        """Energies (L, N) or (L, H, W), column-major, never written to."""
        raise TypeError(f"u must be a ConstUnary or a LogisticUnary; got {type(self).__name__}, which has no energies")


class ConstUnary(Unary):
    """Fixed energies ``u``: (L, N) or (L, H, W), real numbers of any type and strides, copied. +inf as in `setUnaryEnergy`."""

    def __init__(self, u: ArrayLike) -> None:
        energies = _labels_by_points(u, "u")
        self._shape = energies.shape
        self._packed = pack_unary(energies.reshape(len(energies), -1), dtype=np.float32, name="u")

    def _energies(self) -> Float32Array:
        return self._packed.reshape(self._shape)


class LogisticUnary(Unary):
    """Energies ``L @ f`` of linear classifiers: L (labels, k), f (k, N) or (k, H, W), finite. They are copied."""

    def __init__(self, L: ArrayLike, f: ArrayLike) -> None:
        weights = _labels_by_points(L, "L")
        features = _labels_by_points(f, "f")
        if weights.ndim != 2 or weights.shape[1] != len(features):
            raise ValueError(
                f"L must have shape (labels, k) and f (k, points); got {weights.shape} and {features.shape}"
            )
        check_finite(weights, "L")
        check_finite(features, "f")
        single = features.reshape(len(features), -1).astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # pack_unary judges the result
            energies = single.T @ weights.T.astype(np.float32)
        self._shape = (len(weights), *features.shape[1:])
        self._packed = pack_unary(energies.T, dtype=np.float32, name="L @ f")

    def _energies(self) -> Float32Array:
        return self._packed.reshape(self._shape)


class DenseCRF:
    """A fully connected CRF over ``nvar`` points with ``nlabels`` labels.

    Further arguments are ignored, as in pydensecrf. Raises ValueError if a count is not positive.
    """

    def __init__(self, nvar: int, nlabels: int, *_: object, **__: object) -> None:
        self._num_points = whole_number(nvar, "nvar", 1)
        self._num_labels = whole_number(nlabels, "nlabels", 1)
        self._grid: tuple[int, ...] = (self._num_points,)
        self._unary: Float32Array | None = None
        self._mean_field = make_mean_field(self._num_points, self._num_labels, self._walk())

    def _walk(self) -> NDArray[np.int32] | None:
        """The order in which the engine walks the points; None for their own."""
        return None

    def _in_walk_order(self, features: Float32Array) -> Float32Array:
        """Features (d, N) in the order in which the engine walks the points."""
        return features

    def setUnary(self, u: Unary) -> None:
        """Set the unary energies from a `ConstUnary` or `LogisticUnary`, which stays usable.

        Raises ValueError if its shape is not this CRF's.
        """
        if not isinstance(u, Unary):
            raise TypeError(f"u must be a Unary; got {type(u).__name__}. For an array, call setUnaryEnergy")
        self._unary = self._labels_first(u._energies(), "u")

    def setUnaryEnergy(self, u: ArrayLike, f: ArrayLike | None = None) -> None:
        """Set the unary energies: negative log probabilities ``u`` (nlabels, nvar) or (nlabels, H, W), copied.

        Any real dtype and strides. With ``f`` (k, nvar), ``u`` is (nlabels, k) and the energies are ``u @ f``.
        +inf, as in ``-np.log(0)``, means that a point cannot have the label.
        Raises ValueError for other shapes, NaN, -inf, and points all of whose energies are +inf.
        """
        if f is not None:
            self.setUnary(LogisticUnary(u, f))
            return
        energies = self._labels_first(real_array(u, "u"), "u")
        self._unary = pack_unary(energies, dtype=np.float32, name="u")

    def addPairwiseEnergy(
        self,
        features: ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian kernel over ``features`` (d, nvar) or (d, H, W), already divided by their standard deviations.

        compat: a number, (nlabels,) or (nlabels, nlabels); the module's docstring has the signs. kernel, normalization:
        members of `KernelType` and `NormalizationType`. The lattice is built here, so that its errors surface here.
        Raises ValueError for other shapes, NaN and infinity.
        """
        array = flatten_points(real_array(features, "features"), "features", self._num_points, self._grid)
        check_finite(array, "features")
        self._add_kernel(self._in_walk_order(array.astype(np.float32, copy=False)), compat, kernel, normalization)

    def inference(self, niter: int) -> Float32Array:
        """Marginals after ``niter`` (0 or more) mean field updates from softmax(-unary).

        Returns a float32 array (nlabels, nvar), column-major as in pydensecrf.
        """
        iterations = whole_number(niter, "niter", 0)
        result: Float32Array = self._mean_field.inference(
            self._energies(), iterations, check_finite=False
        ).probabilities
        return result

    def startInference(self) -> tuple[Float32Array, Float32Array, Float32Array]:
        """(Q, tmp1, tmp2) for `stepInference`: Q = softmax(-unary), or zeros if no unary was set.

        The scratch matrices tmp1 and tmp2 are there for scripts that pass them around; they stay empty.
        """
        start = self._zeros() if self._unary is None else self.inference(0)
        return start, np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)

    def stepInference(self, Q: Float32Array, tmp1: object = None, tmp2: object = None) -> None:
        """One mean field update of ``Q`` (nlabels, nvar), in place: arrays that share its memory see the new values.

        tmp1, tmp2: ignored. Raises TypeError if Q cannot be written to, ValueError for another shape, NaN and infinity.
        """
        if not isinstance(Q, np.ndarray) or Q.dtype.kind != "f" or not Q.flags.writeable:
            raise TypeError(
                f"Q must be a writable array of floats, such as startInference returns; got {type(Q).__name__}"
                + (f" of dtype {Q.dtype}, writeable={Q.flags.writeable}" if isinstance(Q, np.ndarray) else "")
            )
        result = self._mean_field.inference(self._energies(), 1, q=self._marginals(Q), check_finite=False)
        np.copyto(Q, result.probabilities, casting="same_kind")

    def klDivergence(self, Q: ArrayLike) -> float:
        """sum Q log max(Q, 1e-20) + sum U Q + sum Q (mu K Q) for marginals Q (nlabels, nvar).

        As in pydensecrf: the KL divergence up to a constant, but with the pairwise part not halved.
        """
        return float(self._mean_field.energy(self._energies(), self._marginals(Q)).kl)

    def _add_kernel(self, features: Float32Array, compat: object, kernel: int, normalization: int) -> None:
        """features: (d, N), finite float32, in the walk's order. The rest as the user gave it."""
        _member(KernelType, kernel, "kernel")
        mode = _ENGINE_NORMALIZATIONS[_member(NormalizationType, normalization, "normalization")]
        weights = compatibility(compat, self._num_labels)
        self._mean_field.add_kernel(features, weights, normalization=mode)

    def _labels_first(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """``array`` (L, N) or (L, H, W) as (L, N)."""
        matrix = flatten_points(array, name, self._num_points, self._grid)
        if len(matrix) != self._num_labels:
            raise ValueError(f"{name} must have {self._num_labels} rows, one a label; got shape {array.shape}")
        return matrix

    def _marginals(self, Q: ArrayLike) -> NDArray[Any]:
        array = real_array(Q, "Q")
        if array.shape != (self._num_labels, self._num_points):
            raise ValueError(f"Q must have shape {(self._num_labels, self._num_points)}; got {array.shape}")
        check_finite(array, "Q")
        return array

    def _energies(self) -> Float32Array:
        return self._zeros() if self._unary is None else self._unary

    def _zeros(self) -> Float32Array:
        return np.zeros((self._num_points, self._num_labels), np.float32).T


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image: width first, then height.

    Further arguments are ignored, as in pydensecrf. Raises ValueError if a size or the label count is not positive.
    """

    def __init__(self, w: int, h: int, nlabels: int, *_: object, **__: object) -> None:
        width, height = whole_number(w, "w", 1), whole_number(h, "h", 1)
        self._points = ImagePoints(height, width, np.dtype(np.float32))
        super().__init__(width * height, nlabels)
        self._grid = (height, width)

    def _walk(self) -> NDArray[np.int32]:
        return self._points.order

    def _in_walk_order(self, features: Float32Array) -> Float32Array:
        return self._points.walked(features)

    def addPairwiseGaussian(
        self,
        sxy: float | ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a kernel over positions, with features (x / sx, y / sy).

        sxy: standard deviation in pixels, a number or (sx, sy); further entries are ignored, as in pydensecrf. The rest as
        in `addPairwiseEnergy`.
        Raises ValueError for widths that are not positive and finite.
        """
        features = self._points.position_features(self._widths_xy(sxy))
        self._add_kernel(features, compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: float | ArrayLike,
        srgb: float | ArrayLike,
        rgbim: ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a kernel over positions and colours, with features (x / sx, y / sy, r / sr, g / sg, b / sb).

        rgbim: (H, W, 3), or a gray (H, W) or multispectral (H, W, c) image in 0..255; integers or finite floats, any
        strides. srgb: standard deviation of colours, a number or one per channel. Where one is below 1 or above 255,
        they are in the image's own units, whatever its range.
        The rest as in `addPairwiseGaussian`. Raises ValueError for other shapes, NaN, infinity, and images that seem
        to be in 0..1, in 16 bits or in another range.
        """
        image = self._image(rgbim)
        channels = image.shape[2]
        meaning = f"one a channel of rgbim, whose shape is {np.shape(rgbim)}"
        scales = widths(srgb, channels, "srgb", meaning, more=channels == 3)  # pydensecrf ignores what is beyond three
        check_units(image, "rgbim", scales)
        if image.dtype == bool:
            image = image.view(np.uint8) * np.uint8(255)
        features = self._points.colour_features(self._widths_xy(sxy), image, scales)
        self._add_kernel(features, compat, kernel, normalization)

    def _widths_xy(self, sxy: object) -> tuple[float, float]:
        sx, sy = widths(sxy, 2, "sxy", "sx, sy", more=True)
        return sx, sy

    def _image(self, rgbim: ArrayLike) -> NDArray[Any]:
        """The image as (H, W, c)."""
        image = real_array(rgbim, "rgbim")
        height, width = self._grid
        if image.ndim not in (2, 3) or image.shape[:2] != (height, width) or image.size == 0:
            swapped = image.shape[:2] == (width, height)
            planar = image.ndim == 3 and image.shape[1:] == (height, width)
            hint = "; DenseCRF2D takes the width first, then the height" if swapped else ""
            hint = "; move the channels last, as in rgbim.transpose(1, 2, 0)" if planar else hint
            raise ValueError(
                f"rgbim must have shape ({height}, {width}, 3), or ({height}, {width}) or ({height}, {width}, c); "
                f"got {image.shape}{hint}"
            )
        check_finite(image, "rgbim")
        return image if image.ndim == 3 else image[:, :, None]


def _member(kind: type[_Enumeration], value: int, name: str) -> _Enumeration:
    """``value`` as a member of the enumeration. (pydensecrf takes any integer, and then does not normalise.)"""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(f"{member.name} ({member.value})" for member in kind)
        raise ValueError(f"{name} must be one of {names}; got {value!r}") from None


def _labels_by_points(value: object, name: str) -> NDArray[Any]:
    array = real_array(value, name)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{name} must have two or more axes and no empty one; got shape {array.shape}")
    return array
