"""Mean field inference in a fully connected CRF over any set of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from deeplab_crf import _native
from deeplab_crf.core.arrays import (
    FloatArray,
    address,
    aligned,
    as_engine_floats,
    as_real_array,
    check_dtype,
    element_strides,
    type_suffix,
)
from deeplab_crf.core.energies import LARGEST_ENERGY, energy_error
from deeplab_crf.core.lattice import PermutohedralLattice
from deeplab_crf.core.pairwise import check_normalization, check_strength
from deeplab_crf.runtime.checks import real_number, whole_number
from deeplab_crf.runtime.threads import check_threads, resolve_threads
from deeplab_crf.runtime.workspace import borrowed_parts

# klDivergence's guard against log 0 (pydensecrf's constant).
SMALLEST_BELIEF = 1e-20


@dataclass(frozen=True, eq=False)
class MeanFieldResult:
    """probabilities: ``(L, N)``, a transposed view of a C-contiguous ``(N, L)`` array. iterations: how many were done.
    change: the largest move of a probability in the last one (NaN unless a tolerance was given). converged: it was within
    the tolerance."""

    probabilities: FloatArray
    iterations: int
    change: float
    converged: bool


@dataclass(frozen=True)
class Energy:
    """Terms of the mean field objective, summed over the points in double precision."""

    entropy_term: float
    """sum Q log max(Q, 1e-20), the negative entropy."""
    unary_term: float
    """sum U Q."""
    pairwise_term: float
    """sum Q (C K Q), each pair counted twice and the self terms included."""

    @property
    def kl(self) -> float:
        """pydensecrf's klDivergence: the sum of the three terms, the pairwise one not halved."""
        return self.entropy_term + self.unary_term + self.pairwise_term

    @property
    def free_energy(self) -> float:
        """What the updates descend: KL(Q || P) up to the constant log Z, the pairwise term halved."""
        return self.entropy_term + self.unary_term + 0.5 * self.pairwise_term


@dataclass(frozen=True, eq=False)
class _Term:
    lattice: PermutohedralLattice
    norm_in: FloatArray | None
    norm_out: FloatArray | None
    compat: FloatArray

    def message_energy(self, messages: FloatArray) -> FloatArray:
        """What messages ``(N, L)`` add to the energies."""
        if self.compat.ndim == 2:
            return messages @ self.compat.T
        return messages * (-self.compat if self.compat.ndim == 0 else self.compat)


def pack_unary(
    unary: ArrayLike,
    *,
    dtype: DTypeLike = np.float32,
    name: str = "unary",
    negate: bool = False,
    energies: bool = True,
    threads: int | None = None,
) -> FloatArray:
    """Copy energies ``(L, N)`` of any real dtype and strides into the engine's layout: an ``(L, N)`` view of a C-contiguous
    ``(N, L)`` array.

    Args:
        unary: The energies, or other numbers of each label and point.
        dtype: float32 or float64, of the result.
        name: The name of the argument, for errors.
        negate: Whether to take the negatives, as energies of logits are.
        energies: Whether the result holds energies, in which +inf is accepted; see core/energies.py. Else all must be finite.
        threads: As in `MeanField`.

    Returns:
        The packed numbers, finite.

    Raises:
        ValueError: A number is NaN or infinite and not accepted; the error names the first position.
    """
    array = as_real_array(unary, name)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (labels, points); got shape {array.shape}")
    target = check_dtype(dtype)
    source = aligned(as_engine_floats(array))
    labels, points = source.shape
    packed = np.empty((points, labels), target)
    if packed.size == 0:
        return packed.T
    label_stride, point_stride = element_strides(source)
    factor = -1.0 if negate else 1.0
    pack = getattr(_native, f"pack_unary_{type_suffix(source.dtype)}_{type_suffix(target)}")
    bad = pack(
        address(source),
        points,
        labels,
        point_stride,
        label_stride,
        address(packed),
        factor,
        LARGEST_ENERGY if energies else math.inf,
        resolve_threads(threads),
    )
    if bad >= 0:
        label, point = divmod(bad, points)
        if energies:
            raise energy_error(name, array[:, point], label, f", point {point}", negated=negate, dtype=target)
        raise not_finite(name, target, array[label, point], label, point)
    return packed.T


def not_finite(name: str, dtype: np.dtype[Any], value: Any, label: int, point: int) -> ValueError:
    """The error for numbers of each label and point, not energies, that are NaN or infinite."""
    return ValueError(
        f"{name} must be finite in {dtype}; got {value} at label {label}, point {point}. Check the network's output"
    )


def engine_rows(
    array: ArrayLike,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    name: str,
    *,
    copy: bool = False,
    check_finite: bool = True,
    energies: bool = False,
    threads: int | None = None,
) -> FloatArray:
    """``(L, N)`` input of this shape as C-contiguous ``(N, L)`` of the engine's dtype. energies: as in `pack_unary`."""
    given = as_real_array(array, name)
    if given.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; got shape {given.shape}")
    fits = given.dtype == dtype and given.T.flags.c_contiguous and given.flags.aligned
    if not copy and fits and (not check_finite or np.isfinite(given).all()):
        return given.T
    return pack_unary(given, dtype=dtype, name=name, energies=energies, threads=threads).T


def check_compat(compat: ArrayLike, num_labels: int, dtype: np.dtype[Any]) -> FloatArray:
    """A compatibility of the engine's dtype, contiguous: ``()`` for Potts, ``(L,)`` or ``(L, L)``."""
    given = as_real_array(compat, "compat")
    check_strength(given, "compat")
    array = given.astype(dtype, order="C")
    if array.shape not in ((), (num_labels,), (num_labels, num_labels)):
        raise ValueError(
            f"compat must be a number, or an array of shape ({num_labels},) or ({num_labels}, {num_labels}); "
            f"got shape {array.shape}"
        )
    return array


def check_steps(iterations: int, damping: float, tolerance: float) -> None:
    """Raises ValueError for what `MeanField.inference` cannot run."""
    whole_number(iterations, "iterations", 0)
    if not 0 <= real_number(damping, "damping") < 1:
        raise ValueError(f"damping must be in [0, 1); got {damping!r}")
    if not 0 <= real_number(tolerance, "tolerance") < math.inf:
        raise ValueError(f"tolerance must be finite and >= 0 (0: run all iterations); got {tolerance!r}")


class MeanField:
    """A fully connected CRF over one set of points: kernels are added once, inference runs for any number of unaries.

    num_points: N. num_labels: L. dtype: float32 or float64, for lattices, energies and probabilities. threads: None takes
    `get_num_threads` at each call. order: int32 ``(N,)``, a permutation in which the engine walks the points; features and
    lattices of `add_kernel` are then in this order, unaries and probabilities stay in the order of the points. For images,
    `tile_order` saves a tenth to a fifth of the time. touch_origin: lattices made of features have the vertices around zero
    features too, though no point may touch them, as in pydensecrf where N is no multiple of four.
    """

    def __init__(
        self,
        num_points: int,
        num_labels: int,
        *,
        dtype: DTypeLike = np.float32,
        threads: int | None = None,
        order: NDArray[np.int32] | None = None,
        touch_origin: bool = False,
    ) -> None:
        self.num_points = whole_number(num_points, "num_points", 1)
        self.num_labels = whole_number(num_labels, "num_labels", 1)
        self.dtype = check_dtype(dtype)
        self._threads = None if threads is None else check_threads(threads)
        self._order = None if order is None else _check_order(order, self.num_points)
        self._touch_origin = touch_origin
        self._terms: list[_Term] = []

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_points={self.num_points}, num_labels={self.num_labels}, dtype={self.dtype}, "
            f"kernels={len(self._terms)})"
        )

    @property
    def lattices(self) -> Sequence[PermutohedralLattice]:
        """The lattices of the kernels, in the order they were added."""
        return tuple(term.lattice for term in self._terms)

    def add_kernel(
        self, features: ArrayLike | PermutohedralLattice, compat: ArrayLike, *, normalization: str = "symmetric"
    ) -> None:
        """Add a pairwise kernel.

        features: ``(d, N)`` already divided by their standard deviations, or a lattice over them, the points in the walk's
        order. compat: a number w is Potts
        and adds ``-w K Q`` to the energies; ``(L,)`` adds ``+ compat * K Q``; ``(L, L)`` adds ``+ compat @ (K Q)`` as given.
        normalization: "none", "before", "after" or "symmetric". Raises ValueError for wrong shapes, NaN or inf.
        """
        check_normalization(normalization)
        weights = check_compat(compat, self.num_labels, self.dtype)
        lattice = features if isinstance(features, PermutohedralLattice) else self._build_lattice(features)
        if lattice.num_points != self.num_points or lattice.dtype != self.dtype:
            raise ValueError(
                f"features must be a lattice of {self.num_points} points in {self.dtype}; got {lattice.num_points} points in "
                f"{lattice.dtype}"
            )
        self._terms.append(_Term(lattice, *lattice.norms(normalization), weights))

    def _build_lattice(self, features: ArrayLike) -> PermutohedralLattice:
        array = as_real_array(features, "features")
        if array.ndim != 2 or array.shape[1] != self.num_points:
            raise ValueError(f"features must have shape (d, {self.num_points}); got shape {array.shape}")
        rows = array.T.astype(self.dtype, copy=False)
        return PermutohedralLattice(rows, threads=self._threads, touch_origin=self._touch_origin)

    def _energies(self, unary: ArrayLike, *, check_finite: bool = True) -> FloatArray:
        """Energies as `engine_rows`."""
        shape = (self.num_labels, self.num_points)
        return engine_rows(
            unary, shape, self.dtype, "unary", check_finite=check_finite, energies=True, threads=self._threads
        )

    def _beliefs(self, q: ArrayLike, *, copy: bool = False) -> FloatArray:
        """Probabilities as `engine_rows`."""
        shape = (self.num_labels, self.num_points)
        return engine_rows(q, shape, self.dtype, "q", copy=copy, threads=self._threads)

    def inference(
        self,
        unary: ArrayLike,
        iterations: int,
        *,
        q: ArrayLike | None = None,
        damping: float = 0.0,
        tolerance: float = 0.0,
        check_finite: bool = True,
    ) -> MeanFieldResult:
        """Run mean field updates ``Q <- softmax(-U - sum_m C_m K_m Q)``, all points at once.

        unary: energies ``(L, N)``, lower is better; +inf for labels that a point cannot have.
        q: ``(L, N)`` to start from; None starts from ``softmax(-unary)``.
        damping in [0, 1): ``Q <- (1 - damping) new + damping old``. tolerance: stop after the iteration in which no probability
        moved by more; 0 does all iterations. With no kernels, or 0 iterations, Q is the start. check_finite: False spares the look
        for NaN and inf in energies that `pack_unary` has packed, and so has checked.
        """
        check_steps(iterations, damping, tolerance)
        energies = self._energies(unary, check_finite=check_finite)
        if q is None:
            result = np.empty((self.num_points, self.num_labels), self.dtype)
        else:
            result = self._beliefs(q, copy=True)
        options = {
            "start_from_q": q is not None,
            "iterations": int(iterations),
            "damping": float(damping),
            "tolerance": float(tolerance),
            "threads": resolve_threads(self._threads),
            "order": address(self._order),
        }
        # Two value buffers a kernel.
        sizes = [term.lattice.workspace_bytes(self.num_labels) for term in self._terms for _ in range(2)]
        with borrowed_parts(sizes) as values:
            terms = [_native_term(term, (values[2 * m], values[2 * m + 1])) for m, term in enumerate(self._terms)]
            done, change = getattr(_native, f"mean_field_{type_suffix(self.dtype)}")(
                self.num_points, self.num_labels, address(energies), address(result), terms, options
            )
        return MeanFieldResult(result.T, done, change, tolerance > 0 and change <= tolerance)

    def energy(self, unary: ArrayLike, q: ArrayLike) -> Energy:
        """The terms of the mean field objective at ``q`` ``(L, N)``; see `Energy`."""
        energies, beliefs = self._energies(unary), self._beliefs(q)
        if self._order is not None:
            energies, beliefs = energies[self._order], beliefs[self._order]
        threads = resolve_threads(self._threads)
        pairwise = 0.0
        for term in self._terms:
            messages = term.lattice._filter(beliefs, term.norm_in, term.norm_out, transpose=False, threads=threads)
            pairwise += _dot(beliefs, term.message_energy(messages))
        log_beliefs = np.log(np.maximum(beliefs, np.asarray(SMALLEST_BELIEF, self.dtype)))
        return Energy(_dot(beliefs, log_beliefs), _dot(energies, beliefs), pairwise)


def _dot(a: FloatArray, b: FloatArray) -> float:
    """Sum of products in double precision."""
    return float(np.sum(np.multiply(a, b, dtype=np.float64)))


def _check_order(order: NDArray[np.int32], num_points: int) -> NDArray[np.int32]:
    """Return a copy of the permutation, checked: anything else would have the kernels read and write outside their arrays, and the
    caller may write to its own array later."""
    array = np.array(as_real_array(order, "order"), order="C")
    if array.dtype.kind not in "iu":
        raise TypeError(f"order must hold whole numbers; got dtype {array.dtype}")
    seen = np.zeros(num_points, bool)
    if array.shape == (num_points,) and array.min() >= 0 and array.max() < num_points:
        seen[array] = True
    if not seen.all():
        raise ValueError(
            f"order must be a permutation of 0..{num_points - 1}; got shape {array.shape}, or repeated points"
        )
    return array.astype(np.int32, copy=False)


def _native_term(term: _Term, values: tuple[int, int]) -> tuple[Any, ...]:
    """A kernel and the addresses of its value buffers as the native module describes them; see _native.pyi."""
    return (
        term.lattice.native_view,
        address(term.norm_in),
        address(term.norm_out),
        term.compat.ndim,  # 0 Potts, 1 diagonal, 2 matrix
        address(term.compat),
        *values,
    )
