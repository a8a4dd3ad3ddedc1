"""The permutohedral lattice: a Gaussian filter in d dimensions in time linear in the points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplab_crf import _native
from deeplab_crf.core.arrays import (
    FloatArray,
    address,
    aligned,
    as_real_array,
    element_strides,
)
from deeplab_crf.core.pairwise import check_normalization
from deeplab_crf.runtime.threads import check_threads, resolve_threads
from deeplab_crf.runtime.workspace import borrowed_workspace

# Keeps 1 / s finite where no weight reaches a point (pydensecrf's constant).
_NORM_EPSILON = 1e-20

# From here on the tables of a build go back to the system: kept by the C library, they would add 4 % to the peak memory of an
# inference. Smaller builds leave them for the next one.
_MANY_POINTS = 2**19


class PermutohedralLattice:
    """The lattice over N points, built once and used for any number of filters.

    Filtering with it approximates ``out_i = sum_j exp(-|f_i - f_j|^2 / 2) in_j`` (Adams, Baek, Davis, Eurographics 2010), with
    the scale and the geometry of pydensecrf, bit for bit in float32. Against the exact sum, normalised filters are off by
    6-15 % in relative L2.

    features: ``(N, d)``, d from 1 to 32, already divided by their standard deviations. float64 builds and filters in double
    precision; every other dtype in float32. threads: None takes `get_num_threads`.

    Raises ValueError for no points, too many dimensions, NaN or inf, and features beyond 2^30 lattice units.
    """

    def __init__(self, features: ArrayLike, *, threads: int | None = None, touch_origin: bool = False) -> None:
        array = as_real_array(features, "features")
        if array.ndim != 2:
            raise ValueError(f"features must have shape (N, d); got shape {array.shape}")
        if array.shape[0] == 0:
            raise ValueError(f"features must hold at least one point; got shape {array.shape}")
        if not 1 <= array.shape[1] <= _native.MAX_DIMENSIONS:
            raise ValueError(
                f"features must have 1 to {_native.MAX_DIMENSIONS} dimensions (N, d); got d = {array.shape[1]}. "
                "Project them to fewer, for example by PCA"
            )
        double = array.dtype.kind == "f" and array.dtype.itemsize == 8
        floats = array.astype(np.float64 if double else np.float32, copy=False)  # native byte order too
        self._build(aligned(floats), touch_origin, resolve_threads(threads))
        self._threads = None if threads is None else check_threads(threads)
        self._norms: dict[str, FloatArray] = {}

    def _build(self, features: FloatArray, touch_origin: bool, threads: int) -> None:
        num_points, dims = features.shape
        suffix = "F32" if features.dtype == np.float32 else "F64"
        point_stride, dim_stride = element_strides(features)
        builder = getattr(_native, f"LatticeBuilder{suffix}")(
            address(features), num_points, dims, point_stride, dim_stride, touch_origin, threads
        )
        arrays: dict[str, NDArray[Any]] = {
            "rows": np.empty((num_points, dims + 1), np.int32),
            "weights": np.empty((num_points, dims + 1), features.dtype),
        }
        builder.embed(address(arrays["rows"]), address(arrays["weights"]))
        chunks, vertices, ghosts = _native.chunk_count(num_points), builder.num_vertices, builder.num_ghosts
        for name, shape in (
            ("owned_begin", (chunks + 1,)),
            ("ghost_begin", (chunks + 1,)),
            ("ghost_owner", (ghosts,)),
            ("ghost_order", (ghosts,)),
            # An upper bound: pages behind the used length of each axis are never touched.
            ("chains", (dims + 1, vertices)),
        ):
            arrays[name] = np.empty(shape, np.int32)
        arrays["chain_lengths"] = np.empty(dims + 1, np.int64)
        addresses = {name: address(array) for name, array in arrays.items()}
        builder.connect(addresses)
        self._arrays = arrays
        self._num_vertices = vertices
        self._dtype = features.dtype
        self._view = getattr(_native, f"LatticeView{suffix}")(dims, num_points, vertices, ghosts, addresses)
        if num_points >= _MANY_POINTS:
            del builder
            _native.trim_memory()

    @property
    def num_points(self) -> int:
        """N."""
        return int(self._arrays["rows"].shape[0])

    @property
    def num_dimensions(self) -> int:
        """d."""
        return int(self._arrays["rows"].shape[1]) - 1

    @property
    def num_vertices(self) -> int:
        """Vertices that at least one point touches."""
        return int(self._num_vertices)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: what the filter computes in."""
        return self._dtype

    @property
    def native_view(self) -> Any:
        """The kernels' description of this lattice, valid as long as the lattice lives."""
        return self._view

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_points={self.num_points}, num_dimensions={self.num_dimensions}, "
            f"num_vertices={self.num_vertices}, dtype={self.dtype})"
        )

    def workspace_bytes(self, channels: int) -> int:
        """Size of the value buffer that one filter of ``channels`` channels needs."""
        return int(self._view.workspace_size(channels)) * self._dtype.itemsize

    def norms(self, normalization: str, *, transpose: bool = False) -> tuple[FloatArray | None, FloatArray | None]:
        """Factors ``(N,)`` or None before and after the filter. With s = L(1), "symmetric" is ``(s + 1e-20)^(-1/2)`` on both
        sides, "before" and "after" are ``1 / (s + 1e-20)`` on one; the transpose swaps those two."""
        check_normalization(normalization)
        if normalization == "none":
            return None, None
        key = "symmetric" if normalization == "symmetric" else "inverse"
        if key not in self._norms:
            ones = np.ones((self.num_points, 1), self._dtype)
            sums = self._filter(ones, None, None, transpose=False, out=ones)[:, 0]
            sums += self._dtype.type(_NORM_EPSILON)
            norm = np.reciprocal(sums, out=sums)
            self._norms[key] = np.sqrt(norm, out=norm) if key == "symmetric" else norm
        norm = self._norms[key]
        if normalization == "symmetric":
            return norm, norm
        return (norm, None) if (normalization == "before") != transpose else (None, norm)

    def filter(
        self, values: ArrayLike, *, normalization: str = "none", transpose: bool = False, threads: int | None = None
    ) -> FloatArray:
        """Filter ``values`` ``(N,)`` or ``(N, C)``: ``norm_out * L(norm_in * values)``; see `norms` for the normalisations.

        transpose: apply the transposed operator. Returns an array of the lattice's dtype and of the shape of ``values``.
        Raises ValueError for another number of points and for NaN or inf.
        """
        array = as_real_array(values, "values")
        if array.ndim not in (1, 2) or array.shape[0] != self.num_points:
            raise ValueError(
                f"values must have shape ({self.num_points},) or ({self.num_points}, C); got {array.shape}"
            )
        norm_in, norm_out = self.norms(normalization, transpose=transpose)
        columns = aligned(np.ascontiguousarray(array.reshape(self.num_points, -1), dtype=self._dtype))
        if not np.isfinite(columns).all():
            raise ValueError("values must be finite; got NaN or inf")
        if columns.shape[1] == 0:
            return np.empty(array.shape, self._dtype)
        return self._filter(columns, norm_in, norm_out, transpose=transpose, threads=threads).reshape(array.shape)

    def _filter(
        self,
        columns: FloatArray,
        norm_in: FloatArray | None,
        norm_out: FloatArray | None,
        *,
        transpose: bool,
        threads: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Filter C-contiguous ``(N, C)`` of the lattice's dtype into ``out``, which may be ``columns``, or a new array."""
        if out is None:
            out = np.empty_like(columns)
        channels = columns.shape[1]
        threads = resolve_threads(self._threads if threads is None else threads)
        with borrowed_workspace(self.workspace_bytes(channels)) as workspace:
            self._view.filter(
                address(columns),
                address(out),
                channels,
                address(norm_in),
                address(norm_out),
                address(workspace),
                transpose,
                threads,
            )
        return out
