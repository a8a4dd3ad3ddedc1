"""What each kernel must move and compute at least, after the formulas in the kernels' comments, and what bounds it by that.

Names are those of csrc. n contributions are N (d+1) corners; a row has C channels, padded to whole vectors of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log2

# Below this a kernel ends about when the next could start.
LAUNCH_BOUND = 5e-6
# A ceiling that explains less than this of the time does not bound the kernel.
LEAST_SHARE = 1 / 3
PIECE = 32  # contributions; kPieceLength


@dataclass(frozen=True)
class Sizes:
    """Of one lattice and what it filters, in float32. points: N over the batch. others: d of the further kernels of the same mean
    field."""

    points: int
    dims: int
    vertices: int
    channels: int
    others: tuple[int, ...] = ()

    @property
    def corners(self) -> int:
        """n."""
        return self.points * (self.dims + 1)

    @property
    def row(self) -> int:
        """Bytes of a row of values as a user has it."""
        return 4 * self.channels

    @property
    def padded(self) -> int:
        """Bytes of a row of the lattice."""
        return 16 * ceil(self.channels / 4)

    @property
    def all_corners(self) -> int:
        """n over all kernels."""
        return self.points * (self.dims + 1 + sum(dims + 1 for dims in self.others))


@dataclass(frozen=True)
class Traffic:
    """memory: bytes read and written at least once. cache: bytes gathered or scattered besides, which the second-level cache can
    serve. flops: of float32."""

    memory: float
    cache: float = 0.0
    flops: float = 0.0


Account = Callable[[Sizes], Traffic]


def sort_traffic(sizes: Sizes) -> Traffic:
    """Of a radix sort of 32-bit pairs by the numbers of the vertices, 8 bits a pass: pairs in and out, keys once more for the
    histograms."""
    passes = ceil(log2(max(2, sizes.vertices)) / 8)
    return Traffic((16 * passes + 4) * sizes.corners)


PREPARATION: dict[str, Account] = {
    "pack_energy_rows": lambda s: Traffic(2 * s.points * s.row),
    "transpose_tile": lambda s: Traffic(2 * s.points * s.row),
}
BUILD: dict[str, Account] = {
    "measure_ranges": lambda s: Traffic(4 * s.points * s.dims),
    "embed_points": lambda s: Traffic(
        4 * s.points * s.dims + 12 * s.corners, flops=s.points * (3 * (s.dims + 1) ** 2 + 10 * s.dims)
    ),
    "insert_keys": lambda s: Traffic(12 * s.corners, 12 * s.corners),
    "mark_first": lambda s: Traffic(8 * s.corners, 4 * s.corners),
    "number_rows": lambda s: Traffic(16 * s.corners, 8 * s.corners),
    "find_neighbours": lambda s: Traffic(24 * s.vertices * (s.dims + 1), 12 * s.vertices * (s.dims + 1)),
    "write_indices": lambda s: Traffic(4 * s.corners),
    "mark_lists": lambda s: Traffic(4 * s.corners),
    "count_pieces": lambda s: Traffic(8 * s.vertices),
    "list_pieces": lambda s: Traffic(4 * s.corners, 8 * s.corners),
    "sort (CUB)": sort_traffic,
    "sum (CUB)": lambda s: Traffic(8 * s.corners + 8 * s.vertices),
}
FILTER: dict[str, Account] = {
    "splat_pieces": lambda s: Traffic(
        8 * s.corners + s.points * s.row + s.vertices * s.padded, s.corners * s.row, 2 * s.corners * s.channels
    ),
    "add_pieces": lambda s: Traffic(4 * s.vertices, s.corners / PIECE * s.padded),
    "blur_axis": lambda s: Traffic(
        s.vertices * (8 + 2 * s.padded), 2 * s.vertices * s.padded, 4 * s.vertices * s.channels
    ),
    "slice_points": lambda s: Traffic(
        8 * s.corners + s.points * s.row + s.vertices * s.padded, s.corners * s.padded, 2 * s.corners * s.channels
    ),
}
MEAN_FIELD: dict[str, Account] = {
    "update_beliefs": lambda s: Traffic(
        s.points * (s.row + s.padded) + 8 * s.all_corners,
        s.all_corners * s.padded,
        s.channels * (2 * s.all_corners + 30 * s.points),
    ),
    "apply_compatibility": lambda s: Traffic(
        2 * s.vertices * s.padded, s.vertices * s.padded * s.padded / 16, 2 * s.vertices * s.channels**2
    ),
}
GRADIENTS: dict[str, Account] = {
    "dot_rows": lambda s: Traffic(
        2 * s.points * s.row + 8 * s.corners, 2 * s.corners * s.padded, 4 * s.corners * s.channels
    ),
    "propagate_gradient": lambda s: Traffic(
        s.points * (3 * s.row + s.padded) + 8 * s.all_corners,
        s.all_corners * s.padded,
        s.channels * (2 * s.all_corners + 10 * s.points),
    ),
    "gather_beliefs": lambda s: Traffic(s.points * (s.row + s.padded)),
    "add_corner_gradients": lambda s: Traffic(
        s.points * (s.row + s.padded) + 16 * s.corners, 2 * s.corners * s.padded, 4 * s.corners * s.channels
    ),
    "add_label_products": lambda s: Traffic(
        s.points * s.row + 8 * s.corners, s.corners * s.padded, 2 * s.channels * (s.corners + s.points)
    ),
    "add_outer_products": lambda s: Traffic(
        s.points * s.row + 8 * s.corners,
        s.corners * s.padded,
        2 * s.channels * (s.corners + s.channels * s.points),
    ),
    "sum_dots": lambda s: Traffic(4 * s.points),
    "embed_gradients": lambda s: Traffic(4 * s.points * (3 * s.dims + 1), flops=s.points * 3 * (s.dims + 1) ** 2),
}


@dataclass(frozen=True)
class ConvSizes:
    """Of one convolution with its epilogue. inputs, outputs: pixels over the batch. element: bytes of a number. tiles, matrices: of
    Winograd, all tiles in one launch. gathered: pixels that the taps of a sum find inside the
    map, over the taps and the batch."""

    inputs: int
    outputs: int
    channels: int
    filters: int
    element: int
    residual: bool = False
    tiles: int = 0
    matrices: int = 0
    gathered: int = 0


# Of the convolution's passes around a library's products. What neighbouring tiles read twice comes from the cache.
CONVOLUTION: dict[str, Callable[[ConvSizes], Traffic]] = {
    "finish_convolution": lambda s: Traffic(
        s.outputs * s.filters * s.element * (2 + s.residual), flops=s.outputs * s.filters * (2 + s.residual)
    ),
    "transform_weights": lambda s: Traffic(4 * s.channels * s.filters * (9 + s.matrices)),
    "transform_inputs": lambda s: Traffic(
        4 * s.channels * (s.inputs + s.matrices * s.tiles),
        4 * s.channels * max(0, s.matrices * s.tiles - s.inputs),
        240 / 36 * s.matrices * s.tiles * s.channels,
    ),
    "transform_outputs": lambda s: Traffic(
        4 * s.filters * (s.matrices * s.tiles + s.outputs * (1 + s.residual)),
        flops=200 / 36 * s.matrices * s.tiles * s.filters,
    ),
    "gather_taps": lambda s: Traffic(s.element * s.filters * (s.gathered + s.outputs), flops=s.gathered * s.filters),
}
# Of one block, of a thread for each image, or with nothing to move where all is well.
SMALL = frozenset(
    {
        "measure_coordinates",
        "choose_layout",
        "begin_structure",
        "stop_settled_images",
        "invalidate_images",
        "add_chunks",
    }
)


def bounding(traffic: Traffic, seconds: float, ceilings: Mapping[str, float]) -> str:
    """What explains the time best: the launch, one of the ceilings ("copy" and "cache" in bytes a second, "arithmetic" in FLOP a
    second) with its share of the time, or none."""
    if seconds < LAUNCH_BOUND:
        return "launch"
    shares = {
        "memory": traffic.memory / ceilings["copy"] / seconds,
        "second-level cache": (traffic.memory + traffic.cache) / ceilings["cache"] / seconds,
        "arithmetic": traffic.flops / ceilings["arithmetic"] / seconds,
    }
    name, share = max(shares.items(), key=lambda item: item[1])
    return f"{name} ({share:.0%})" if share >= LEAST_SHARE else f"latency ({name} explains {share:.0%})"
