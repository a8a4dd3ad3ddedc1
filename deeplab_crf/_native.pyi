"""The compiled module (csrc/bindings). Only deeplab_crf.core and deeplab_crf.ops call it.

Arrays cross as addresses: integers, 0 for null. The caller allocates them, checks shapes and dtypes, and keeps them alive for the
call (for a view: as long as the view). T is float32 or float64, by the name's suffix; indices are int32 unless said otherwise.
N points, d dimensions, L labels, M vertices, G ghost rows, K chunks (csrc/lattice/lattice.h), B images, C channels, T iterations.

A batch of lattices over B images of N points each is three arrays: rows int32 (B, N, d+1), weights of T (B, N, d+1) and
structure, one-dimensional int32 that only this module reads (csrc/lattice/cpu/batch.h). Images are worked on side by side if there
are at least as many as threads; each has the bits that it has alone.

Raises ValueError for what a user can mend, and KeyboardInterrupt from `mean_field_*`. The GIL is released inside.
"""

from collections.abc import Sequence
from typing import Final, TypedDict

MAX_DIMENSIONS: Final[int]

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    isa_compiled: list[str]
    isa_detected: str
    isa_active: str
    cuda_built: bool

class _MeanFieldOptions(TypedDict):
    start_from_q: bool
    iterations: int
    damping: float
    tolerance: float
    threads: int
    order: int
    """(N) row of unary and q of each position of the lattices, or 0: the same."""

class _BatchOptions(TypedDict):
    start_from_q: bool
    iterations: int
    damping: float
    tolerance: float
    threads: int
    order: int
    """(N), shared by the images, or 0."""
    log_output: bool
    """out gets log Q = log_softmax(-e), from the energies."""
    trace: int
    """(trace_slots, B, N, L), gets Q_0 ... Q_(T-1), the one of iteration t in slot t % trace_slots; or 0."""
    trace_slots: int
    """T; 1 is enough for log_output with a tolerance, which needs one."""

class _GradientOptions(TypedDict):
    iterations: int
    threads: int
    order: int
    """(N), shared by the images, or 0."""
    trace: int
    """(T, B, N, L): Q_0 ... Q_(T-1)."""
    trace_fixed: bool
    """trace is one (B, N, L) that stands for every Q_t: the implicit derivative at a fixed point."""
    tolerance: float
    """trace_fixed: stop once no entry of the adjoint moves by more; 0: never."""
    output: int
    """(B, N, L): Q_T, or log Q_T."""
    log_output: bool
    grad_output: int
    """(B, N, L): gradient of the loss in `output`."""
    grad_unary: int
    """(B, N, L), written."""
    grad_start: int
    """(B, N, L), written, if the iterations started from a given Q_0; 0 if from softmax(-U)."""

def build_info() -> _BuildInfo:
    """What was compiled and what is in use. Raises ValueError if DEEPLAB_CRF_CPU names nothing usable."""

def trim_memory() -> None:
    """Gives memory that was freed back to the system, where the C library would keep it."""

def chunk_count(num_points: int) -> int:
    """K, a function of N alone."""

def image_features_u8_f32(
    image: int,
    shape: tuple[int, int, int],
    order: int,
    widths_xy: tuple[float, float],
    channel_widths: int,
    out: int,
    threads: int,
) -> None:
    """out (2 + channels, N) of the second dtype of the name: x / sx, y / sy and the channels of image (N, channels) of the first
    dtype over channel_widths (channels), for the pixels in ``order`` (N). shape: (height, width, channels)."""

def image_features_f32_f32(
    image: int,
    shape: tuple[int, int, int],
    order: int,
    widths_xy: tuple[float, float],
    channel_widths: int,
    out: int,
    threads: int,
) -> None: ...
def image_features_u8_f64(
    image: int,
    shape: tuple[int, int, int],
    order: int,
    widths_xy: tuple[float, float],
    channel_widths: int,
    out: int,
    threads: int,
) -> None: ...
def image_features_f64_f64(
    image: int,
    shape: tuple[int, int, int],
    order: int,
    widths_xy: tuple[float, float],
    channel_widths: int,
    out: int,
    threads: int,
) -> None: ...

class LatticeBuilderF32:
    """Builds a lattice in steps, between which the caller allocates what depends on the number of vertices."""

    def __init__(
        self,
        features: int,
        num_points: int,
        dims: int,
        point_stride: int,
        dim_stride: int,
        touch_origin: bool,
        threads: int,
    ) -> None:
        """features: T, element (p, i) at ``p * point_stride + i * dim_stride``. touch_origin: the vertices around the zero
        feature exist too."""
    def embed(self, rows: int, weights: int) -> None:
        """rows (N, d+1), final only after `connect`; weights (N, d+1) of T."""
    def connect(self, arrays: dict[str, int]) -> None:
        """Fills rows (N, d+1), owned_begin (K+1), ghost_begin (K+1), ghost_owner (G), ghost_order (G), chains (d+1, M) and
        chain_lengths (d+1) of int64."""
    @property
    def num_vertices(self) -> int:
        """M, known after `embed`."""
    @property
    def num_ghosts(self) -> int:
        """G, known after `embed`."""

class LatticeBuilderF64:
    def __init__(
        self,
        features: int,
        num_points: int,
        dims: int,
        point_stride: int,
        dim_stride: int,
        touch_origin: bool,
        threads: int,
    ) -> None: ...
    def embed(self, rows: int, weights: int) -> None: ...
    def connect(self, arrays: dict[str, int]) -> None: ...
    @property
    def num_vertices(self) -> int: ...
    @property
    def num_ghosts(self) -> int: ...

class LatticeViewF32:
    """A lattice in the caller's arrays: those of `LatticeBuilderF32.connect`, and weights."""

    def __init__(
        self, dims: int, num_points: int, num_vertices: int, num_ghosts: int, arrays: dict[str, int]
    ) -> None: ...
    def filter(
        self,
        values: int,
        out: int,
        channels: int,
        norm_in: int,
        norm_out: int,
        workspace: int,
        transpose: bool,
        threads: int,
    ) -> None:
        """out = norm_out * L(norm_in * values). values and out: (N, channels), may be the same array. norm_in, norm_out: (N) or
        null. workspace: `workspace_size` elements of T."""
    def workspace_size(self, channels: int) -> int:
        """Elements of a value buffer: all rows, each padded to whole vectors."""

class LatticeViewF64:
    def __init__(
        self, dims: int, num_points: int, num_vertices: int, num_ghosts: int, arrays: dict[str, int]
    ) -> None: ...
    def filter(
        self,
        values: int,
        out: int,
        channels: int,
        norm_in: int,
        norm_out: int,
        workspace: int,
        transpose: bool,
        threads: int,
    ) -> None: ...
    def workspace_size(self, channels: int) -> int: ...

_TermF32 = tuple[LatticeViewF32, int, int, int, int, int, int]
_TermF64 = tuple[LatticeViewF64, int, int, int, int, int, int]

def mean_field_f32(
    num_points: int, num_labels: int, unary: int, q: int, terms: list[_TermF32], options: _MeanFieldOptions
) -> tuple[int, float]:
    """Mean field on energies unary (N, L) into q (N, L). A term is (view, norm_in, norm_out, kind, compat, two workspaces of
    ``workspace_size(L)``); kind 0 is Potts (compat: 1 element), 1 diagonal (L), 2 a matrix (L, L). Returns the iterations
    done and the largest move of a probability in the last one (NaN without a tolerance)."""

def mean_field_f64(
    num_points: int, num_labels: int, unary: int, q: int, terms: list[_TermF64], options: _MeanFieldOptions
) -> tuple[int, float]: ...
def pack_unary_f32_f32(
    values: int,
    num_points: int,
    num_labels: int,
    point_stride: int,
    label_stride: int,
    out: int,
    factor: float,
    largest: float,
    threads: int,
) -> int:
    """out (N, L), factor times values, element (p, l) at ``p * point_stride + l * label_stride``; from the first dtype of the name
    to the second. A point with a value of +inf and another one that is not is capped at ``largest``, unless that is inf. Returns
    the index l * N + p of a value that is not finite afterwards, the first of the first chunk that has one, or -1."""

def pack_unary_f32_f64(
    values: int,
    num_points: int,
    num_labels: int,
    point_stride: int,
    label_stride: int,
    out: int,
    factor: float,
    largest: float,
    threads: int,
) -> int: ...
def pack_unary_f64_f32(
    values: int,
    num_points: int,
    num_labels: int,
    point_stride: int,
    label_stride: int,
    out: int,
    factor: float,
    largest: float,
    threads: int,
) -> int: ...
def pack_unary_f64_f64(
    values: int,
    num_points: int,
    num_labels: int,
    point_stride: int,
    label_stride: int,
    out: int,
    factor: float,
    largest: float,
    threads: int,
) -> int: ...

class LatticeBatchF32:
    """Builds the lattices of B images in steps, between which the caller allocates what depends on the number of vertices."""

    def __init__(self, features: int, shape: tuple[int, int, int], strides: tuple[int, int, int], threads: int) -> None:
        """features: T of shape (B, N, d), with its strides in elements."""
    def embed(self, rows: int, weights: int) -> None:
        """rows (B, N, d+1), final only after `connect`; weights (B, N, d+1) of T."""
    def connect(self, rows: int, structure: int) -> None:
        """Makes rows final and fills structure, `structure_size` int32."""
    @property
    def num_vertices(self) -> list[int]:
        """M of each image, known after `embed`."""
    @property
    def structure_size(self) -> int:
        """Elements of structure, known after `embed`."""

class LatticeBatchF64:
    def __init__(
        self, features: int, shape: tuple[int, int, int], strides: tuple[int, int, int], threads: int
    ) -> None: ...
    def embed(self, rows: int, weights: int) -> None: ...
    def connect(self, rows: int, structure: int) -> None: ...
    @property
    def num_vertices(self) -> list[int]: ...
    @property
    def structure_size(self) -> int: ...

class CheckedLatticesF32:
    """Rows, weights and structure of a batch of lattices, for one call. What decides where the kernels read and write is copied
    before it is checked, so another thread may write to the arrays meanwhile: the structure here, the rows where they are used."""

    def __init__(self, rows: int, num_rows: int, weights: int, structure: int, length: int) -> None:
        """num_rows, length: elements of rows and of structure. ValueError if they are not of one lattice_build."""

class CheckedLatticesF64:
    def __init__(self, rows: int, num_rows: int, weights: int, structure: int, length: int) -> None: ...

def lattice_sizes(structure: int, length: int) -> tuple[int, int, list[int]]:
    """N, d and M of each image, from a structure of ``length`` int32. ValueError if it is none."""

def lattice_filter_workspace_f32(lattice: CheckedLatticesF32, channels: int, threads: int) -> int:
    """Elements of T that `lattice_filter_f32` works in; `lattice_filter_weight_gradient_f32` takes twice as many."""

def lattice_filter_workspace_f64(lattice: CheckedLatticesF64, channels: int, threads: int) -> int: ...
def lattice_filter_f32(
    lattice: CheckedLatticesF32, values: int, out: int, channels: int, workspace: int, transpose: bool, threads: int
) -> None:
    """out = L values, or L^T values, image by image. values and out: (B, N, C), may be the same array."""

def lattice_filter_f64(
    lattice: CheckedLatticesF64, values: int, out: int, channels: int, workspace: int, transpose: bool, threads: int
) -> None: ...
def lattice_filter_weight_gradient_f32(
    lattice: CheckedLatticesF32,
    values: int,
    grad: int,
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
    threads: int,
) -> None:
    """out (B, N, d+1) = derivative of <grad, L values> (or L^T) in the barycentric weights, whose places in the lattice stay.
    values and grad: (B, N, C)."""

def lattice_filter_weight_gradient_f64(
    lattice: CheckedLatticesF64,
    values: int,
    grad: int,
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
    threads: int,
) -> None: ...
def lattice_embed_gradient_f32(
    features: int,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    grad_weights: int,
    grad_features: int,
    threads: int,
) -> None:
    """grad_features (B, N, d) from grad_weights (B, N, d+1): the derivative of the barycentric weights within the simplex of each
    point. features as for `LatticeBatchF32`."""

def lattice_embed_gradient_f64(
    features: int,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    grad_weights: int,
    grad_features: int,
    threads: int,
) -> None: ...
def mean_field_workspace_f32(lattice: CheckedLatticesF32, num_labels: int, threads: int) -> int:
    """Elements of a term's values in `mean_field_batch_f32`."""

def mean_field_workspace_f64(lattice: CheckedLatticesF64, num_labels: int, threads: int) -> int: ...
def mean_field_batch_f32(
    batch: int,
    num_points: int,
    num_labels: int,
    unary: int,
    out: int,
    terms: list[tuple[CheckedLatticesF32, int, int, int, int, int]],
    options: _BatchOptions,
) -> tuple[list[int], list[float]]:
    """Mean field on energies unary (B, N, L) into out (B, N, L). A term is (lattice, norm_in, norm_out, kind, compat, values):
    norms (B, N) or 0; kind and compat as in `mean_field_f32`, shared by the images; values of `mean_field_workspace_f32`. Returns
    the iterations done and the largest move of the last one (NaN without a tolerance) of each image."""

def mean_field_batch_f64(
    batch: int,
    num_points: int,
    num_labels: int,
    unary: int,
    out: int,
    terms: list[tuple[CheckedLatticesF64, int, int, int, int, int]],
    options: _BatchOptions,
) -> tuple[list[int], list[float]]: ...
def mean_field_gradient_workspace_f32(
    lattice: CheckedLatticesF32, num_labels: int, threads: int, refilter: bool
) -> int:
    """Elements of a term's values in `mean_field_gradient_f32`. refilter: norm_out_gradient or weight_gradient is asked for."""

def mean_field_gradient_workspace_f64(
    lattice: CheckedLatticesF64, num_labels: int, threads: int, refilter: bool
) -> int: ...
def mean_field_gradient_f32(
    batch: int,
    num_points: int,
    num_labels: int,
    terms: list[tuple[CheckedLatticesF32, int, int, int, int, int, int, int, int, int]],
    options: _GradientOptions,
) -> tuple[list[int], list[float]]:
    """Gradients of mean field. A term is that of `mean_field_batch_f32` (values: `mean_field_gradient_workspace_f32`) and the
    addresses, or 0, that receive its gradients: compat_gradient like compat, summed over the images; norm_in_gradient and
    norm_out_gradient (B, N); weight_gradient (B, N, d+1). Returns the steps done and the largest last move of the adjoint (NaN
    without a tolerance) of each image."""

def mean_field_gradient_f64(
    batch: int,
    num_points: int,
    num_labels: int,
    terms: list[tuple[CheckedLatticesF64, int, int, int, int, int, int, int, int, int]],
    options: _GradientOptions,
) -> tuple[list[int], list[float]]: ...

# Convolutions of float32. Arrays are contiguous and channels-last: x (B, H, W, C), residual and out (B, OH, OW, K).

_Axis = tuple[int, int, int, int, int, int]
"""`deeplab_crf.ops.conv.shapes.Axis`."""
_ConvShape = tuple[int, int, int, _Axis, _Axis]
"""`deeplab_crf.ops.conv.shapes.Shape`."""
_Epilogue = tuple[int, int, bool]
"""Addresses of bias (K) and residual, or 0, and whether a ReLU follows."""
_Branch = tuple[int, tuple[int, ...], _Axis, _Axis]
"""weight (K, C, kh, kw), its strides in elements, rows, columns."""

def winograd_weights_size(shape: _ConvShape) -> int:
    """Return the number of floats of the packed weights of a 3 x 3 convolution of stride 1."""

def winograd_workspace_size(shape: _ConvShape) -> int: ...
def winograd_products(shape: _ConvShape) -> int:
    """Return the number of multiplications per input channel and filter."""

def winograd_pack(shape: _ConvShape, weight: int, strides: tuple[int, ...], out: int, threads: int) -> None: ...
def winograd(
    shape: _ConvShape, x: int, packed: int, epilogue: _Epilogue, out: int, workspace: int, threads: int
) -> bool:
    """Return False if a sum was not finite; the result must then not be used."""

def direct_weights_size(shape: _ConvShape) -> int: ...
def direct_products(shape: _ConvShape) -> int:
    """Return the number of multiplications per input channel and filter, of taps inside the map."""

def direct_pack(shape: _ConvShape, weight: int, strides: tuple[int, ...], out: int, threads: int) -> None: ...
def direct(shape: _ConvShape, x: int, packed: int, epilogue: _Epilogue, out: int, threads: int) -> None: ...
def shifted_weights_size(shape: _ConvShape, branches: Sequence[_Branch]) -> int:
    """Return the size for a sum of convolutions of stride 1, which share the sizes of ``shape``."""

def shifted_products(shape: _ConvShape, branches: Sequence[_Branch]) -> int:
    """Return the number of multiplications per input channel, unused lanes included."""

def shifted_pack(shape: _ConvShape, branches: Sequence[_Branch], out: int, threads: int) -> None: ...
def shifted_sum(
    shape: _ConvShape, branches: Sequence[_Branch], x: int, packed: int, epilogue: _Epilogue, out: int, threads: int
) -> None: ...
def add_relu(values: int, residual: int, count: int, threads: int) -> None:
    """values = relu(values + residual), in place."""

def transpose_planes(values: int, planes: int, rows: int, columns: int, out: int, threads: int) -> None:
    """Write out (planes, columns, rows) from values (planes, rows, columns)."""

def fingerprint(values: int, count: int, threads: int) -> int:
    """Return a 64-bit hash that changes when any bit of the values does."""
