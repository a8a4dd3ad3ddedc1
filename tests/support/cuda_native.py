"""The functions of deeplab_crf._cuda over NumPy arrays, as the emulated module takes them: what deeplab_crf.ops does with tensors
on a GPU."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from native_batch import KernelGradient, address
from numpy.typing import NDArray

Array = NDArray[Any]

# The default stream of the first device.
QUEUE = (0, 0)

# What memory holds that nobody has written to, and bytes behind a workspace that nobody may write to.
POISON, GUARD = 0xC3, 256


_LIBC = ctypes.CDLL(None)
_LIBC.free.argtypes = [ctypes.c_void_p]


def poisoned(count: int, dtype: Any) -> Array:
    """Memory with nothing good in it, aligned to 256 bytes as torch's is. It ends where its allocation does, so that
    AddressSanitizer sees the first step too far."""
    dtype = np.dtype(dtype)
    begin = ctypes.c_void_p()
    if count == 0 or _LIBC.posix_memalign(ctypes.byref(begin), 256, count * dtype.itemsize) != 0:
        return np.empty(count, dtype)
    assert begin.value is not None
    memory = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(begin.value)
    weakref.finalize(memory, _LIBC.free, begin.value)
    array = np.frombuffer(memory, np.uint8)
    array[:] = POISON
    return array.view(dtype)


@dataclass
class CudaLattices:
    """Lattices of features (B, N, d), any strides, built by ``module``. max_vertices: 0 for none."""

    module: ModuleType
    features: Array
    max_vertices: int = 0
    key_words: int = 1
    rows: Array = field(init=False)
    weights: Array = field(init=False)
    structure: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = self.shape
        self.rows = poisoned(shape[0] * shape[1] * (shape[2] + 1), np.int32).reshape(*shape[:2], shape[2] + 1)
        self.weights = poisoned(self.rows.size, self.dtype).reshape(self.rows.shape)
        while True:
            workspace = poisoned(self._native("lattice_build_workspace")(QUEUE, shape, *self._bounds), np.uint8)
            build = (*self._bounds, address(workspace))
            self._native("lattice_embed")(QUEUE, self._fields, address(self.rows), address(self.weights), build)
            header = workspace[: 4 * self.module.HEADER_SIZE].view(np.int32).copy()
            if self.max_vertices:
                capacity = self.max_vertices
                break
            capacity, words = self.module.check_header(address(header), 0)
            if words <= self.key_words:
                break
            self.key_words = min(width for width in self.module.KEY_WORDS if width >= words)
        self.structure = poisoned(self.module.structure_size(shape, capacity), np.int32)
        self._native("lattice_connect")(
            QUEUE, self._fields, address(self.rows), address(self.structure), capacity, build
        )

    def check(self) -> int:
        """Number of vertices; ValueError if the build failed."""
        return int(self.module.check_header(address(self.structure), self.max_vertices)[0])

    @property
    def num_vertices(self) -> list[int]:
        """Of each image."""
        begin = self.module.image_begin(self.shape, self.structure.size)
        return np.diff(self.structure[begin : begin + self.shape[0] + 1]).tolist()

    def filter(self, values: Array, *, transpose: bool = False) -> Array:
        """L values, or L^T values, (B, N, C). Of uint16: the bits of bfloat16."""
        out = poisoned(values.size, values.dtype).reshape(values.shape)
        workspace = self.workspace(values.shape[2])
        suffix = "bf16" if values.dtype == np.uint16 else f"f{8 * values.itemsize}"
        getattr(self.module, f"lattice_filter_{suffix}")(
            QUEUE,
            self.addresses,
            self.shape,
            address(values),
            address(out),
            values.shape[2],
            address(workspace),
            transpose,
        )
        return out

    def weight_gradient(self, values: Array, grad: Array, *, transpose: bool = False) -> Array:
        """Gradient of <grad, L values> in the weights, (B, N, d+1)."""
        out = poisoned(self.weights.size, self.dtype).reshape(self.weights.shape)
        workspace = self.workspace(values.shape[2], 2)
        vectors = (address(values), address(grad))
        self._native("lattice_filter_weight_gradient")(
            QUEUE, self.addresses, self.shape, vectors, address(out), values.shape[2], address(workspace), transpose
        )
        return out

    def embed_gradient(self, grad_weights: Array) -> Array:
        """Gradient in the features from that in the weights."""
        out = poisoned(self.features.size, self.dtype).reshape(self.shape)
        workspace = poisoned(self.module.lattice_embed_gradient_workspace(self.shape[0], self.shape[2]), np.uint8)
        self._native("lattice_embed_gradient")(
            QUEUE, self._fields, address(grad_weights), address(out), address(workspace)
        )
        return out

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of features, weights and values."""
        return self.features.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, N, d)."""
        return self.features.shape

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """What the native functions take, with the length of the structure."""
        return address(self.rows), address(self.weights), address(self.structure), self.structure.size

    def workspace(self, channels: int, filters: int = 1) -> Array:
        """For so many filters."""
        size = self._native("lattice_filter_workspace")(self.shape, self.structure.size, channels)
        return poisoned(filters * size, self.dtype)

    def _native(self, name: str) -> Any:
        return getattr(self.module, f"{name}_f{8 * self.dtype.itemsize}")

    @property
    def _bounds(self) -> tuple[int, int]:
        return self.key_words, self.max_vertices

    @property
    def _fields(self) -> tuple[Any, ...]:
        strides = tuple(stride // self.dtype.itemsize for stride in self.features.strides)
        return self.features.ctypes.data, self.shape, strides


@dataclass
class CudaKernel:
    """A pairwise kernel over a batch: its lattices, compat of shape (), (L,) or (L, L), and norms (B, N) or None."""

    lattices: CudaLattices
    compat: Array
    norm_in: Array | None = None
    norm_out: Array | None = None


@dataclass
class CudaMeanField:
    """Mean field on energies (B, N, L) of any labels."""

    kernels: list[CudaKernel]
    iterations: int
    order: Array | None = None
    log_output: bool = False
    damping: float = 0.0
    tolerance: float = 0.0

    def run(self, module: ModuleType, unary: Array, start: Array | None = None) -> tuple[Array, Array, Array, Array]:
        """Output (B, N, L), trace (T, B, N, L), and with a tolerance the steps (B) and changes (T, B)."""
        out = poisoned(unary.size, unary.dtype).reshape(unary.shape)
        if start is not None:
            out[...] = start
        trace = np.full((self.iterations, *unary.shape), np.nan, unary.dtype)
        suffix = f"f{8 * unary.dtype.itemsize}"
        beliefs = poisoned(getattr(module, f"mean_field_workspace_{suffix}")(unary.shape), unary.dtype)
        steps, state = poisoned(len(unary), np.int32), poisoned(len(unary), np.int32)
        changes = poisoned(self.iterations * len(unary), unary.dtype).reshape(self.iterations, len(unary))
        workspaces = [kernel.lattices.workspace(unary.shape[2]) for kernel in self.kernels]
        terms = [self._term(kernel, values) for kernel, values in zip(self.kernels, workspaces, strict=True)]
        options = {
            "order": address(self.order),
            "start_from_q": start is not None,
            "log_output": self.log_output,
            "iterations": self.iterations,
            "damping": self.damping,
            "tolerance": self.tolerance,
            "trace": address(trace) if self.iterations else 0,
            "trace_slots": self.iterations,
            "beliefs": address(beliefs),
            "steps": address(steps),
            "changes": address(changes),
            "state": address(state),
        }
        run = getattr(module, f"mean_field_{suffix}")
        run(QUEUE, unary.shape, address(unary), address(out), terms, options)
        return out, trace, steps, changes

    def gradient(
        self,
        module: ModuleType,
        out: Array,
        trace: Array,
        grad: Array,
        asked: list[KernelGradient],
        *,
        start: bool = False,
    ) -> tuple[Array, Array | None, Array, Array]:
        """Gradients in the unary energies and, if asked for, in the start; with a tolerance the steps (B) and moves (T + 1, B).
        The arrays of ``asked`` are filled. trace: (T, B, N, L), or one Q."""
        grad_unary = poisoned(out.size, out.dtype).reshape(out.shape)
        grad_start = poisoned(out.size, out.dtype).reshape(out.shape) if start else None
        steps = poisoned(len(out), np.int32)
        moves = poisoned((self.iterations + 1) * len(out), out.dtype).reshape(-1, len(out))
        terms = [
            (*self._term(kernel)[:6], *map(address, (wanted.compat, wanted.norm_in, wanted.norm_out, wanted.weights)))
            for kernel, wanted in zip(self.kernels, asked, strict=True)
        ]
        options = {
            "order": address(self.order),
            "iterations": self.iterations,
            "trace": address(trace),
            "trace_fixed": trace.ndim == 3,
            "output": address(out),
            "log_output": self.log_output,
            "grad_output": address(grad),
            "grad_unary": address(grad_unary),
            "grad_start": address(grad_start),
            "tolerance": self.tolerance,
            "steps": address(steps),
            "moves": address(moves),
            "workspace": 0,
        }
        suffix = f"f{8 * out.dtype.itemsize}"
        size = getattr(module, f"mean_field_gradient_workspace_{suffix}")(out.shape, terms, options)
        workspace = poisoned(size + GUARD, np.uint8)
        run = getattr(module, f"mean_field_gradient_{suffix}")
        run(QUEUE, out.shape, terms, {**options, "workspace": address(workspace)})
        assert (workspace[size:] == POISON).all()
        return grad_unary, grad_start, steps, moves

    @staticmethod
    def _term(kernel: CudaKernel, values: Array | None = None) -> tuple[Any, ...]:
        lattices = kernel.lattices
        return (
            lattices.addresses,
            lattices.shape[2],
            address(kernel.norm_in),
            address(kernel.norm_out),
            kernel.compat.ndim,
            address(kernel.compat),
            address(values),
        )
