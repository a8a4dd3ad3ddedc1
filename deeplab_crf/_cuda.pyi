"""The CUDA kernels, a module of its own: it exists where the build found a CUDA compiler, and imports without a GPU or driver.

Arrays cross as addresses of memory of the device, allocated by the caller; nothing here waits for the device. B images, N points,
d dimensions, C channels, M vertices. Suffixes f32, f64: the dtype T of features, weights and values.

    queue     (device, stream): the device's number, and a cudaStream_t as an integer
    shape     (B, N, d)
    features  (address, shape, strides in elements)
    lattice   (rows, weights, structure, length): addresses, and the number of elements of structure
    build     (key_words, max_vertices, workspace): one of KEY_WORDS, a bound of M or 0, an address aligned to 256 bytes

rows int32 (B, N, d+1), weights T (B, N, d+1), structure int32 (length): csrc/lattice/cuda/structure.h. Workspaces are aligned to 16
bytes at least.

Building: ``lattice_embed_*`` fills weights and rows and a header of HEADER_SIZE int32 at the beginning of the workspace. Without a
bound: copy the header to the host, `check_header`, and if more words than given are needed begin again with the next of KEY_WORDS;
else allocate ``structure_size(shape, M)`` elements and call ``lattice_connect_*`` with capacity M. With a bound: go on with
capacity max_vertices at once, without looking; the structure begins with the header, which tells later whether the bound sufficed.

ValueError: arguments that do not fit together, and what `check_header` finds. RuntimeError: what CUDA reports, with the name of the
kernel. DEEPLAB_CRF_CUDA_SYNC=1 waits for every kernel, so that the name is that of the kernel that failed.
"""

from collections.abc import Sequence
from typing import TypedDict

_Triple = tuple[int, int, int]
_Queue = tuple[int, int]
_Features = tuple[int, _Triple, _Triple]
_Lattice = tuple[int, int, int, int]
_Build = tuple[int, int, int]

# Lattice, its d, norm_in, norm_out, kind (0 Potts, 1 diagonal, 2 matrix), compat, workspace of a filter of L channels.
_Term = tuple[_Lattice, int, int, int, int, int, int]

# Lattice, its d, norm_in, norm_out, kind, compat, then the addresses, or 0, that receive its gradients: compat_gradient,
# norm_in_gradient, norm_out_gradient, weight_gradient.
_GradientTerm = tuple[_Lattice, int, int, int, int, int, int, int, int, int]

class _BuildInfo(TypedDict):
    architectures: str
    compiler: str

class _MeanFieldOptions(TypedDict):
    order: int
    start_from_q: bool
    log_output: bool
    iterations: int
    damping: float
    tolerance: float
    trace: int
    trace_slots: int
    beliefs: int
    steps: int
    changes: int
    state: int

class _GradientOptions(TypedDict):
    order: int
    iterations: int
    trace: int
    trace_fixed: bool
    output: int
    log_output: bool
    grad_output: int
    grad_unary: int
    grad_start: int
    tolerance: float
    steps: int
    moves: int
    workspace: int

HEADER_SIZE: int
KEY_WORDS: tuple[int, int, int]

def build_info() -> _BuildInfo: ...
def devices() -> tuple[int, str]:
    """Number of devices, and why there are none where the driver says so."""

def check_header(header: int, max_vertices: int) -> tuple[int, int]:
    """(M, words that a key needs) from a header on the host. ValueError if features are not finite or too large, or if there are
    more vertices than the structure has room for, or than max_vertices where it is not made yet."""

def structure_size(shape: _Triple, capacity: int) -> int: ...
def image_begin(shape: _Triple, length: int) -> int:
    """Where in a structure of this length the first vertex of each image is told, and M behind them: B + 1 elements."""

def lattice_build_workspace_f32(queue: _Queue, shape: _Triple, key_words: int, max_vertices: int) -> int: ...
def lattice_build_workspace_f64(queue: _Queue, shape: _Triple, key_words: int, max_vertices: int) -> int:
    """Bytes."""

def lattice_embed_f32(queue: _Queue, features: _Features, rows: int, weights: int, build: _Build) -> None: ...
def lattice_embed_f64(queue: _Queue, features: _Features, rows: int, weights: int, build: _Build) -> None: ...
def lattice_connect_f32(
    queue: _Queue, features: _Features, rows: int, structure: int, capacity: int, build: _Build
) -> None: ...
def lattice_connect_f64(
    queue: _Queue, features: _Features, rows: int, structure: int, capacity: int, build: _Build
) -> None: ...
def lattice_filter_workspace_f32(shape: _Triple, length: int, channels: int) -> int: ...
def lattice_filter_workspace_f64(shape: _Triple, length: int, channels: int) -> int:
    """Elements of T."""

def lattice_filter_f32(
    queue: _Queue,
    lattice: _Lattice,
    shape: _Triple,
    values: int,
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
) -> None: ...
def lattice_filter_f64(
    queue: _Queue,
    lattice: _Lattice,
    shape: _Triple,
    values: int,
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
) -> None:
    """out = L values, or L^T values; both (B, N, C), which may be the same. The same bits every time, and for each image those that
    it has alone."""

def lattice_filter_f16(
    queue: _Queue,
    lattice: _Lattice,
    shape: _Triple,
    values: int,
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
) -> None: ...
def lattice_filter_bf16(
    queue: _Queue,
    lattice: _Lattice,
    shape: _Triple,
    values: int,
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
) -> None:
    """lattice_filter_f32 of float16 or bfloat16 values and out; weights and workspace are float32, and so are all sums: out is what
    lattice_filter_f32 gives, rounded once."""

def lattice_filter_weight_gradient_f32(
    queue: _Queue,
    lattice: _Lattice,
    shape: _Triple,
    vectors: tuple[int, int],
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
) -> None: ...
def lattice_filter_weight_gradient_f64(
    queue: _Queue,
    lattice: _Lattice,
    shape: _Triple,
    vectors: tuple[int, int],
    out: int,
    channels: int,
    workspace: int,
    transpose: bool,
) -> None:
    """out (B, N, d+1) = gradient of <grad, L values> in the weights (L^T if transpose). vectors: addresses of values and grad, both
    (B, N, C). workspace: two of a filter's."""

def lattice_embed_gradient_workspace(batch: int, dims: int) -> int:
    """Bytes."""

def lattice_embed_gradient_f32(
    queue: _Queue, features: _Features, grad_weights: int, grad_features: int, workspace: int
) -> None: ...
def lattice_embed_gradient_f64(
    queue: _Queue, features: _Features, grad_weights: int, grad_features: int, workspace: int
) -> None:
    """grad_features (B, N, d) from grad_weights (B, N, d+1), contiguous: exact within the simplex of each point."""

def transpose_f32(queue: _Queue, values: _Features, out: int) -> None: ...
def transpose_f64(queue: _Queue, values: _Features, out: int) -> None:
    """out, contiguous, = values, (B, rows, columns) of any strides."""

def pack_unary_f32(
    queue: _Queue, scores: _Features, out: int, factor: float, largest: float, first_wrong: int
) -> None: ...
def pack_unary_f64(queue: _Queue, scores: _Features, out: int, factor: float, largest: float, first_wrong: int) -> None:
    """out, contiguous, = factor * scores, (B, points, labels) of any strides. A point with +inf and a lower value is capped at
    ``largest``; one with nothing but +inf becomes NaN. first_wrong: uint64 or 0; out: the smallest (b * labels + l) * points + p of
    a value that is NaN or -inf, or +inf of such a point; all ones if there is none."""

def mean_field_workspace_f32(shape: _Triple) -> int: ...
def mean_field_workspace_f64(shape: _Triple) -> int:
    """Elements of T for beliefs. shape: (B, N, L)."""

def mean_field_f32(
    queue: _Queue, shape: _Triple, unary: int, out: int, terms: list[_Term], options: _MeanFieldOptions
) -> None: ...
def mean_field_f64(
    queue: _Queue, shape: _Triple, unary: int, out: int, terms: list[_Term], options: _MeanFieldOptions
) -> None:
    """Mean field on energies unary (B, N, L): out (B, N, L) becomes Q, or log Q with log_output (damping must be 0 then);
    start_from_q: it holds the start. At most 16 terms. Norms (B, N), or 0 for ones. compat, of one, (L,) or (L, L) elements, as
    in _native.pyi.

    order: int32 (N) or 0; position p of lattices and norms is row order[p] of unary, out and trace. trace: (trace_slots, B, N,
    L) or 0; Q_t goes to slot t % trace_slots, the last one excepted. beliefs: workspace. With a tolerance over 0 also, else
    0: steps int32 (B), the iterations that each image took; changes (iterations, B), the largest moves of its probabilities;
    state int32 (B), workspace. Nothing waits for the device: an image that has stopped is left alone."""

def mean_field_gradient_workspace_f32(shape: _Triple, terms: list[_GradientTerm], options: _GradientOptions) -> int: ...
def mean_field_gradient_workspace_f64(shape: _Triple, terms: list[_GradientTerm], options: _GradientOptions) -> int:
    """Bytes of the workspace that `mean_field_gradient_f64` needs with these arguments, whatever is said of a workspace there."""

def mean_field_gradient_f32(
    queue: _Queue, shape: _Triple, terms: list[_GradientTerm], options: _GradientOptions
) -> None: ...
def mean_field_gradient_f64(
    queue: _Queue, shape: _Triple, terms: list[_GradientTerm], options: _GradientOptions
) -> None:
    """Gradients of mean field (B, N, L), of one without damping. At most 16 terms; their gradients: compat_gradient like compat,
    summed over the images; norm_in_gradient and norm_out_gradient (B, N); weight_gradient (B, N, d+1). All are written.

    trace: (iterations, B, N, L), or with trace_fixed (B, N, L), one Q for all iterations. output, grad_output, grad_unary (B, N,
    L): the result, Q or with log_output log Q; the gradient in it; out, that in unary. grad_start (B, N, L), or 0 where Q_0 was
    softmax(-unary). workspace: aligned to 256 bytes. With a tolerance over 0 also, else 0: steps int32 (B), the steps that each
    image took; moves (iterations + 1, B), the largest entries of their adjoints. Nothing waits for the device: an image whose
    adjoint has none over the tolerance is left alone."""

_Axis = tuple[int, int, int, int, int, int]
"""`deeplab_crf.ops.conv.shapes.Axis`."""
_ConvShape = tuple[int, int, int, _Axis, _Axis]
"""`deeplab_crf.ops.conv.shapes.Shape`."""
_Epilogue = tuple[int, int, bool]
"""Addresses of bias (K) and residual, or 0, and whether a ReLU follows."""

MAX_OFFSETS: int

def winograd_tiles(shape: _ConvShape) -> tuple[int, int, int]:
    """Return the outputs of a tile along rows and columns, and the number of tiles.

    Raises:
        ValueError: The kernel is not 3 x 3 or the stride not 1.
    """

def winograd_weights(queue: _Queue, shape: _ConvShape, weight: int, strides: tuple[int, ...], out: int) -> None:
    """Write out (matrices, C, K) from weight (K, C, 3, 3) of any strides, all float32.

    The number of matrices is (rows + 2) (columns + 2) for tiles of rows x columns outputs.
    """

def winograd_inputs(queue: _Queue, shape: _ConvShape, first_tile: int, num_tiles: int, x: int, out: int) -> None:
    """Write out (matrices, num_tiles, C) for tiles of x (B, H, W, C)."""

def winograd_outputs(
    queue: _Queue, shape: _ConvShape, first_tile: int, num_tiles: int, products: int, epilogue: _Epilogue, out: int
) -> None:
    """Write the outputs of these tiles in out (B, OH, OW, K) from products (matrices, num_tiles, K).

    The residual of the epilogue has the layout of out.
    """

def conv_epilogue_f32(
    queue: _Queue, values: int, bias: int, residual: int, relu: bool, count: int, channels: int, inner: int
) -> None: ...
def conv_epilogue_f64(
    queue: _Queue, values: int, bias: int, residual: int, relu: bool, count: int, channels: int, inner: int
) -> None: ...
def conv_epilogue_f16(
    queue: _Queue, values: int, bias: int, residual: int, relu: bool, count: int, channels: int, inner: int
) -> None: ...
def conv_epilogue_bf16(
    queue: _Queue, values: int, bias: int, residual: int, relu: bool, count: int, channels: int, inner: int
) -> None:
    """values = relu(values + bias + residual) in place: count elements, of which inner share a channel."""

def gather_shifted_f32(
    queue: _Queue,
    products: int,
    bias: int,
    out: int,
    offsets: Sequence[tuple[int, int]],
    batch: int,
    height: int,
    width: int,
    classes: int,
    channels_last: bool,
) -> None: ...
def gather_shifted_f64(
    queue: _Queue,
    products: int,
    bias: int,
    out: int,
    offsets: Sequence[tuple[int, int]],
    batch: int,
    height: int,
    width: int,
    classes: int,
    channels_last: bool,
) -> None: ...
def gather_shifted_f16(
    queue: _Queue,
    products: int,
    bias: int,
    out: int,
    offsets: Sequence[tuple[int, int]],
    batch: int,
    height: int,
    width: int,
    classes: int,
    channels_last: bool,
) -> None: ...
def gather_shifted_bf16(
    queue: _Queue,
    products: int,
    bias: int,
    out: int,
    offsets: Sequence[tuple[int, int]],
    batch: int,
    height: int,
    width: int,
    classes: int,
    channels_last: bool,
) -> None:
    """out[b, p, k] = bias[k] + sum over offsets (dy, dx) of products[b, p + (dy, dx), offset, k].

    Offsets that leave the map are left out. products: (B, H W, offsets, K). bias: (K) of float32
    (float64 for f64), or 0. At most MAX_OFFSETS offsets.
    """
