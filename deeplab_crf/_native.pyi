"""The compiled module (csrc/bindings). Only deeplab_crf.core calls it.

Arrays cross as addresses: integers, 0 for null. The caller allocates them, checks shapes and dtypes, and keeps them alive for the
call (for a view: as long as the view). T is float32 or float64, by the name's suffix; indices are int32 unless said otherwise.
N points, d dimensions, L labels, M vertices, G ghost rows, K chunks (csrc/lattice/lattice.h).

Raises ValueError for what a user can mend, and KeyboardInterrupt from `mean_field_*`. The GIL is released inside.
"""

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
def pack_labels_f32_f32(
    values: int, num_points: int, num_labels: int, point_stride: int, label_stride: int, out: int, threads: int
) -> int:
    """out (N, L) from values, element (p, l) at ``p * point_stride + l * label_stride``; from the first dtype of the name to the
    second. Returns the index l * N + p of a value that is not finite, the first of the first chunk that has one, or -1."""

def pack_labels_f32_f64(
    values: int, num_points: int, num_labels: int, point_stride: int, label_stride: int, out: int, threads: int
) -> int: ...
def pack_labels_f64_f32(
    values: int, num_points: int, num_labels: int, point_stride: int, label_stride: int, out: int, threads: int
) -> int: ...
def pack_labels_f64_f64(
    values: int, num_points: int, num_labels: int, point_stride: int, label_stride: int, out: int, threads: int
) -> int: ...
