"""The batch functions of deeplab_crf._native over NumPy arrays: what deeplab_crf.ops does with tensors, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deeplab_crf import _native

Array = NDArray[Any]


def native(name: str, dtype: DTypeLike) -> Any:
    """The function, or class, of that name for a dtype."""
    bits = 8 * np.dtype(dtype).itemsize
    return getattr(_native, f"{name}F{bits}" if name[0].isupper() else f"{name}_f{bits}")


def address(array: Array | None) -> int:
    """Where a C-contiguous array begins; 0 for None."""
    if array is None:
        return 0
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def _triples(array: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return array.shape, tuple(stride // array.itemsize for stride in array.strides)


# Elements behind a workspace that nothing may touch.
_GUARD = 64


def workspace(size: int, dtype: DTypeLike) -> Array:
    """Of NaN, and guarded."""
    return np.full(size + _GUARD, np.nan, dtype)


def check_guards(*workspaces: Array) -> None:
    """Nothing wrote behind them."""
    for array in workspaces:
        assert np.isnan(array[-_GUARD:]).all()


@dataclass
class Lattices:
    """The lattices of features (B, N, d), any strides: their three arrays."""

    features: Array
    threads: int = 1

    def __post_init__(self) -> None:
        shape, strides = _triples(self.features)
        builder = native("LatticeBatch", self.dtype)(self.features.ctypes.data, shape, strides, self.threads)
        self.rows = np.empty((*shape[:2], shape[2] + 1), np.int32)
        self.weights = np.empty(self.rows.shape, self.dtype)
        builder.embed(address(self.rows), address(self.weights))
        self.num_vertices = builder.num_vertices
        self.structure = np.empty(builder.structure_size, np.int32)
        builder.connect(address(self.rows), address(self.structure))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of features, weights and values."""
        return self.features.dtype

    @property
    def checked(self) -> Any:
        """What the native functions take."""
        return native("CheckedLattices", self.dtype)(
            address(self.rows), self.rows.size, address(self.weights), address(self.structure), self.structure.size
        )

    def _workspace(self, channels: int, buffers: int) -> Array:
        size = native("lattice_filter_workspace", self.dtype)(self.checked, channels, self.threads)
        return workspace(buffers * size, self.dtype)

    def filter(self, values: Array, *, transpose: bool = False) -> Array:
        """L values, or L^T values, (B, N, C)."""
        out = np.empty_like(values)
        channels = values.shape[2]
        buffer = self._workspace(channels, 1)
        native("lattice_filter", self.dtype)(
            self.checked, address(values), address(out), channels, address(buffer), transpose, self.threads
        )
        check_guards(buffer)
        return out

    def weight_gradient(self, values: Array, grad: Array, *, transpose: bool = False) -> Array:
        """Gradient of <grad, L values> in the weights, (B, N, d+1)."""
        out = np.empty_like(self.weights)
        channels = values.shape[2]
        buffers = self._workspace(channels, 2)
        native("lattice_filter_weight_gradient", self.dtype)(
            self.checked,
            address(values),
            address(grad),
            address(out),
            channels,
            address(buffers),
            transpose,
            self.threads,
        )
        check_guards(buffers)
        return out

    def embed_gradient(self, grad_weights: Array) -> Array:
        """Gradient in the features from that in the weights."""
        out = np.empty(self.features.shape, self.dtype)
        shape, strides = _triples(self.features)
        native("lattice_embed_gradient", self.dtype)(
            self.features.ctypes.data, shape, strides, address(grad_weights), address(out), self.threads
        )
        return out


@dataclass
class Kernel:
    """A pairwise kernel over a batch: its lattices, compat of shape (), (L,) or (L, L), and norms (B, N) or None."""

    lattices: Lattices
    compat: Array
    norm_in: Array | None = None
    norm_out: Array | None = None

    def term(self, values: Array) -> tuple[Any, ...]:
        """What `mean_field_batch_*` takes."""
        return (
            self.lattices.checked,
            address(self.norm_in),
            address(self.norm_out),
            self.compat.ndim,
            address(self.compat),
            address(values),
        )


@dataclass
class KernelGradient:
    """Gradients in the fields of a `Kernel`; None where not asked for."""

    compat: Array | None = None
    norm_in: Array | None = None
    norm_out: Array | None = None
    weights: Array | None = None


@dataclass
class MeanField:
    """Mean field on energies (B, N, L), as the native module does it for a batch."""

    kernels: list[Kernel]
    iterations: int
    order: Array | None = None
    log_output: bool = False
    threads: int = 1

    def run(self, unary: Array, start: Array | None = None, **options: Any) -> tuple[Array, Array, Any]:
        """Output (B, N, L), trace (T, B, N, L), and what the native function returns."""
        batch, points, labels = unary.shape
        out = np.empty_like(unary) if start is None else start.copy()
        trace = np.full((self.iterations, *unary.shape), np.nan, unary.dtype)
        sizes = native("mean_field_workspace", unary.dtype)
        workspaces = [
            workspace(sizes(kernel.lattices.checked, labels, self.threads), unary.dtype) for kernel in self.kernels
        ]
        settings = {
            "start_from_q": start is not None,
            "iterations": self.iterations,
            "damping": 0.0,
            "tolerance": 0.0,
            "threads": self.threads,
            "order": address(self.order),
            "log_output": self.log_output,
            "trace": address(trace) if self.iterations else 0,
            "trace_slots": self.iterations,
        }
        terms = [kernel.term(values) for kernel, values in zip(self.kernels, workspaces, strict=True)]
        done = native("mean_field_batch", unary.dtype)(
            batch, points, labels, address(unary), address(out), terms, {**settings, **options}
        )
        check_guards(*workspaces)
        return out, trace, done

    def gradient(
        self, out: Array, trace: Array, grad: Array, asked: list[KernelGradient], **options: Any
    ) -> tuple[Array, Array | None, Any]:
        """Gradients in the unary energies and in the start (with the option ``start``), and what the native function returns;
        the arrays of ``asked`` are filled."""
        batch, points, labels = out.shape
        grad_unary = np.full_like(out, np.nan)
        grad_start = np.full_like(out, np.nan) if options.pop("start", False) else None
        sizes = native("mean_field_gradient_workspace", out.dtype)
        terms, workspaces = [], []
        for kernel, wanted in zip(self.kernels, asked, strict=True):
            refilter = wanted.weights is not None or wanted.norm_out is not None
            size = sizes(kernel.lattices.checked, labels, self.threads, refilter)
            workspaces.append(workspace(size, out.dtype))
            gradients = (wanted.compat, wanted.norm_in, wanted.norm_out, wanted.weights)
            terms.append((*kernel.term(workspaces[-1]), *map(address, gradients)))
        settings = {
            "iterations": self.iterations,
            "threads": self.threads,
            "order": address(self.order),
            "trace": address(trace),
            "trace_fixed": trace.ndim == 3,
            "tolerance": 0.0,
            "output": address(out),
            "log_output": self.log_output,
            "grad_output": address(grad),
            "grad_unary": address(grad_unary),
            "grad_start": address(grad_start),
        }
        done = native("mean_field_gradient", out.dtype)(batch, points, labels, terms, {**settings, **options})
        check_guards(*workspaces)
        return grad_unary, grad_start, done
