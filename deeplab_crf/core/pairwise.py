"""Pairwise kernels of a dense CRF as plain data: what to compare (features) and what disagreement costs (compatibility).

Every kernel adds ``compatibility @ (K Q)`` to the energy of a label, where ``K`` is the (normalised) Gaussian filter over
the kernel's features (Kraehenbuehl & Koltun, NIPS 2011, equations 2-4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplab_crf.core.arrays import FloatArray, as_real_array
from deeplab_crf.runtime.checks import choice, real_number, shown

NORMALIZATIONS = ("none", "before", "after", "symmetric")

# Weights and compatibilities up to here keep energies finite in float32, whatever the number of labels and points: a message does
# not reach 10^20, and their product is below the largest float32.
LARGEST_STRENGTH = 1e18

# Widths that are normal numbers in float32.
_SMALLEST_WIDTH = float(np.finfo(np.float32).tiny)
_LARGEST_WIDTH = float(np.finfo(np.float32).max)

Width: TypeAlias = float | Sequence[float]


def check_normalization(value: str, name: str = "normalization") -> str:
    """Return ``value`` if it names a normalisation, else raise ValueError."""
    return choice(value, NORMALIZATIONS, name)


def _widths(value: Width, name: str, count: int | None) -> tuple[float, ...]:
    """One positive finite standard deviation, or one per axis, as a tuple of floats."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be a number or a sequence of numbers; got {shown(value)}")
    try:
        given: tuple[object, ...] = tuple(value)  # type: ignore[arg-type]
    except TypeError:  # one number
        given = (value,)
    widths = tuple(real_number(width, name) for width in given)
    if len(widths) == 0 or (count is not None and len(widths) not in (1, count)):
        raise ValueError(f"{name} must be one number or {count or 'several'} of them; got {len(widths)}")
    if not all(_SMALLEST_WIDTH <= width <= _LARGEST_WIDTH for width in widths):
        raise ValueError(f"{name} must be positive and finite in float32 (a standard deviation); got {shown(value)}")
    return widths * count if count is not None and len(widths) == 1 else widths


def _check_weight(weight: float) -> None:
    number = real_number(weight, "weight")
    if not math.isfinite(number):
        raise ValueError(f"weight must be finite; got {weight!r}")
    check_strength(number, "weight")


def check_strength(values: float | FloatArray, name: str) -> None:
    """Raise ValueError unless every one of ``values`` is finite and at most `LARGEST_STRENGTH` in magnitude."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if not largest <= LARGEST_STRENGTH:
        found = f"{largest:g}" if math.isfinite(largest) else "NaN or inf"
        raise ValueError(
            f"{name} must be finite and at most {LARGEST_STRENGTH:g} in magnitude, so that energies stay finite; got {found}"
        )


def _check_optional_normalization(normalization: str | None) -> None:
    if normalization is not None:
        check_normalization(normalization)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Smoothness kernel over positions: ``exp(-|p_i - p_j|^2 / (2 sxy^2))``.

    sxy: standard deviation in pixels, one number or one per axis, ``(sx, sy)``: columns first (``(sx, sy, sz)`` in volumes, see
    `DenseCRF`). weight: strength; with the default Potts
    compatibility, neighbours that agree lower the energy by ``weight * K Q``. compat: None (Potts), ``(L,)`` or ``(L, L)``
    added to the energy as ``+ weight * compat @ (K Q)``, so ``-numpy.eye(L)`` is Potts. normalization: None takes the call's.
    """

    sxy: Width = 3.0
    weight: float = 3.0
    compat: ArrayLike | None = None
    normalization: str | None = None

    def __post_init__(self) -> None:
        _widths(self.sxy, "sxy", None)
        _check_weight(self.weight)
        _check_optional_normalization(self.normalization)

    @property
    def widths_xy(self) -> tuple[float, float]:
        """Standard deviations in pixels along columns and rows. Raises ValueError if ``sxy`` is not one number or two."""
        sx, sy = self.widths_axes(2)
        return sx, sy

    def widths_axes(self, axes: int) -> tuple[float, ...]:
        """Standard deviations along ``axes`` axes, columns first. Raises ValueError if ``sxy`` has another length."""
        return _widths(self.sxy, "sxy", axes)

    @property
    def compatibility(self) -> float | NDArray[np.float64]:
        """What the mean field engine takes: a Potts weight, or an array with the weight multiplied in."""
        return _weighted_compatibility(self.weight, self.compat)


@dataclass(frozen=True, eq=False)
class Bilateral:
    """Appearance kernel: ``exp(-|p_i - p_j|^2 / (2 sxy^2) - |c_i - c_j|^2 / (2 srgb^2))``.

    sxy as in `Gaussian`. srgb: standard deviation of colours in 0..255, one number or one per channel; a width below 1 or
    above 255 says that the widths are in the image's own units. weight, compat, normalization as in `Gaussian`.
    """

    sxy: Width = 80.0
    srgb: Width = 13.0
    weight: float = 10.0
    compat: ArrayLike | None = None
    normalization: str | None = None

    def __post_init__(self) -> None:
        _widths(self.sxy, "sxy", None)
        _widths(self.srgb, "srgb", None)
        _check_weight(self.weight)
        _check_optional_normalization(self.normalization)

    @property
    def widths_xy(self) -> tuple[float, float]:
        """Standard deviations in pixels along columns and rows. Raises ValueError if ``sxy`` is not one number or two."""
        sx, sy = self.widths_axes(2)
        return sx, sy

    def widths_axes(self, axes: int) -> tuple[float, ...]:
        """Standard deviations along ``axes`` axes, columns first. Raises ValueError if ``sxy`` has another length."""
        return _widths(self.sxy, "sxy", axes)

    def widths_channels(self, channels: int) -> tuple[float, ...]:
        """Standard deviations of the ``channels`` image channels. Raises ValueError if ``srgb`` has another length."""
        return _widths(self.srgb, "srgb", channels)

    @property
    def compatibility(self) -> float | NDArray[np.float64]:
        """What the mean field engine takes: a Potts weight, or an array with the weight multiplied in."""
        return _weighted_compatibility(self.weight, self.compat)


@dataclass(frozen=True, eq=False)
class PairwiseKernel:
    """A kernel over features of your own, already divided by their standard deviations.

    features: ``(N, d)`` as `PermutohedralLattice` takes them, ``(d, N)`` as pydensecrf does, or image-shaped ``(d, H, W)``
    or ``(H, W, d)``. compat: a number w is Potts and adds ``-w K Q`` to the energy, ``(L,)`` adds ``+ compat * K Q``,
    ``(L, L)`` adds ``+ compat @ (K Q)``.
    """

    features: ArrayLike
    compat: ArrayLike = 1.0
    normalization: str | None = None

    def __post_init__(self) -> None:
        _check_optional_normalization(self.normalization)

    @property
    def compatibility(self) -> float | NDArray[np.float64]:
        """What the mean field engine takes: a Potts weight, or an array."""
        compat = as_real_array(self.compat, "compat").astype(np.float64)
        check_strength(compat, "compat")
        return float(compat) if compat.ndim == 0 else compat


def _weighted_compatibility(weight: float, compat: ArrayLike | None) -> float | NDArray[np.float64]:
    if compat is None:
        return float(weight)
    array = as_real_array(compat, "compat").astype(np.float64)
    check_strength(array, "compat")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"compat must have shape (L,) or (L, L); got shape {array.shape}. Use weight for a Potts strength"
        )
    return float(weight) * array


Kernel: TypeAlias = Gaussian | Bilateral | PairwiseKernel
