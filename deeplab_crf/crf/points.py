"""The pixels of images and the voxels of volumes as points: the order in which the engine walks them, and their features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_crf.ops.cuda_backend import is_capturing
from deeplab_crf.ops.lattice.features import scaled_features
from deeplab_crf.runtime.locks import ForkSafeLock

# Tiles within tiles, as in core/image_points.py: lattice rows of the inner stay in the first-level cache, those of the outer in the
# second.
_OUTER_TILE = 64
_INNER_TILE = 16

# Grids of more points are made anew each time instead of kept.
_LARGEST_KEPT = 2**22

# Those on CUDA are kept for as long as the process lives, up to so many points in all (168 MB): kernels on other streams, and
# captured graphs, may read one that has no owner in Python any more.
_MOST_KEPT_ON_CUDA = 2**23
_kept_on_cuda: dict[tuple[object, ...], Grid] = {}
_keeping = ForkSafeLock()


class Grid(NamedTuple):
    """The points of an image or volume in the order of the walk. order: int32 ``(N,)``, row-major number of each. pixels: the
    same in int64. positions: ``(axes, N)``, columns first: x, y(, z)."""

    order: Tensor
    pixels: Tensor
    positions: Tensor


def walked_grid(shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Grid:
    """The grid of ``shape`` on the device of ``like``. Those of the last few shapes are kept, but not where a compiler or another
    tensor subclass watches, which must see how they come about."""
    plain = type(like) is Tensor and not torch.compiler.is_compiling()
    if not plain or math.prod(shape) > _LARGEST_KEPT:
        return _make_grid(tuple(shape), dtype, like.device)
    if like.is_cuda:
        return _kept_cuda_grid(tuple(shape), dtype, like.device)
    return _kept_grid(tuple(shape), dtype, like.device)


def _make_grid(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Grid:
    order = tile_walk(shape, device)
    return Grid(order, order.long(), grid_positions(shape, order, dtype, device))


@lru_cache(maxsize=4)
def _kept_grid(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Grid:
    with torch.inference_mode(False):  # what is made in inference mode could not be used in training later
        return _make_grid(shape, dtype, device)


def _kept_cuda_grid(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Grid:
    key = (shape, dtype, device)
    grid = _kept_on_cuda.get(key)
    if grid is not None:
        return grid
    with torch.inference_mode(False):
        grid = _make_grid(shape, dtype, device)
    if is_capturing():
        return grid  # filled when the graph is replayed
    torch.cuda.current_stream(device).synchronize()  # other streams will read it
    with _keeping:
        if sum(kept.order.numel() for kept in _kept_on_cuda.values()) + grid.order.numel() <= _MOST_KEPT_ON_CUDA:
            _kept_on_cuda[key] = grid
    return grid


def tile_walk(shape: Sequence[int], device: torch.device) -> Tensor:
    """The pixels of an image ``(H, W)`` or volume ``(D, H, W)``, by row-major number, in the order of a walk through tiles of
    64 x 64 pixels and tiles of 16 x 16 in these, slice by slice. int32 ``(N,)``.

    Computed without loops over tiles or values kept from before, so that it compiles and exports.
    """
    height, width = shape[-2:]
    # place[y, x]: how many pixels come before. Rows of outer tiles, then outer tiles of the row, and the same within.
    top, outer_height, inner_top, inner_height, y = _tiles(height, device)
    left, outer_width, inner_left, inner_width, x = _tiles(width, device)
    place = top[:, None] * width + outer_height[:, None] * left
    place += inner_top[:, None] * outer_width
    place += inner_height[:, None] * inner_left
    place += y[:, None] * inner_width + x
    place = place.reshape(-1)
    pixels = torch.arange(height * width, dtype=torch.int32, device=device)
    order = torch.empty_like(pixels).scatter_(0, place, pixels)
    slices = torch.arange(math.prod(shape[:-2]), dtype=torch.int32, device=device) * (height * width)
    return (slices[:, None] + order).reshape(-1)


def _tiles(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For each coordinate of an axis: begin and length of its outer tile, begin within that and length of its inner tile, and
    what remains. int64 ``(length,)`` each."""
    coordinate = torch.arange(length, device=device)
    begin = coordinate // _OUTER_TILE * _OUTER_TILE
    outer_length = (length - begin).clamp(max=_OUTER_TILE)
    inside = coordinate - begin
    inner_begin = inside // _INNER_TILE * _INNER_TILE
    inner_length = (outer_length - inner_begin).clamp(max=_INNER_TILE)
    return begin, outer_length, inner_begin, inner_length, inside - inner_begin


def grid_positions(shape: Sequence[int], order: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coordinates ``(axes, N)`` of pixels or voxels in the order of a walk (None: row-major), columns first: x, y(, z)."""
    rest = torch.arange(math.prod(shape), dtype=torch.int32, device=device) if order is None else order
    coordinates = []
    for size in reversed(shape):
        coordinates.append((rest % size).to(dtype))
        rest = rest // size
    return torch.stack(coordinates)


def gather_points(values: Tensor, order: Tensor | None) -> Tensor:
    """Values ``(B, C, *shape)`` of pixels as ``(B, C, N)`` in the order of a walk (None: row-major)."""
    flat = values.flatten(2)
    # gather: 0.45 ms for 500 x 375 x 3 floats, where index_select takes 7.3.
    return flat if order is None else flat.gather(2, order.long().expand(*flat.shape[:2], -1))


def kernel_features(
    positions: Tensor, colours: Tensor | None, log_widths: Tensor, pixels: Tensor | None = None
) -> Tensor:
    """Features ``(B, N, d)`` of one kernel, a view of memory that runs point by point within a feature.

    positions: ``(axes, N)`` or ``(B, axes, N)``. colours: ``(B, channels, N)``, uint8 or of the dtype of positions, or None; the
    points are their columns ``pixels``. log_widths: ``(d,)`` log standard deviations. B is 1 where nothing depends on the image.
    """
    batched = positions if positions.ndim == 3 else positions[None]
    widths = log_widths.exp().to(positions.dtype)
    return scaled_features(batched, colours, pixels, widths).transpose(1, 2)


def replace_masked(features: Tensor, mask: Tensor) -> Tensor:
    """Features ``(B, N, d)`` in which points outside ``mask`` ``(B, N)`` (bool) stand where a point inside stands, so that they add
    no vertices to a lattice."""
    first = mask.to(torch.int32).argmax(dim=1)
    inside = torch.take_along_dim(features, first[:, None, None], dim=1)
    # Transposed: the result keeps the layout of `kernel_features`.
    return torch.where(mask[:, None], features.transpose(1, 2), inside.transpose(1, 2)).transpose(1, 2)
