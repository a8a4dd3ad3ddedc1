"""Gaussian filters in many dimensions as differentiable functions: joint bilateral filtering and upsampling.

Adams, Baek, Davis (Eurographics 2010); joint bilateral upsampling after Kopf et al. (SIGGRAPH 2007).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_crf.core.pairwise import Bilateral, Width
from deeplab_crf.crf.inputs import check_device, check_floats, check_tensor, extremes, may_read
from deeplab_crf.crf.points import gather_points, grid_positions, kernel_features
from deeplab_crf.ops.lattice.operators import NORM_EPSILON, build_lattice, normalisation


def permutohedral_filter(values: Tensor, features: Tensor, *, normalization: str = "after") -> Tensor:
    """``out_i ~ sum_j exp(-|f_i - f_j|^2 / 2) values_j`` by the permutohedral lattice, normalised.

    values: ``(N, C)`` or ``(B, N, C)``. features: ``(N, d)`` or ``(B, N, d)``, divided by their standard deviations, d from 1 to
    32. values: floating point; float64 computes in double, everything else in float32. normalization: "none", "before", "after"
    (weighted averages) or "symmetric". Differentiable in values (twice) and features. Returns the shape and dtype of ``values``.

    Raises ValueError for other shapes, NaN or inf in features, and features beyond 2^30 lattice units.
    """
    check_tensor(values, "values")
    check_tensor(features, "features")
    check_floats(values, "values")
    if features.is_complex():
        raise TypeError(f"features must hold real numbers; got {features.dtype}")
    if values.ndim not in (2, 3) or features.ndim != values.ndim or features.shape[:-1] != values.shape[:-1]:
        raise ValueError(
            "values and features must have shapes (N, C) and (N, d), or (B, N, C) and (B, N, d); "
            f"got {tuple(values.shape)} and {tuple(features.shape)}"
        )
    columns, points = (_engine_floats(tensor, values) for tensor in (values, features))
    if values.ndim == 2:
        columns, points = columns[None], points[None]
    lattice = build_lattice(points)
    norm_in, norm_out = normalisation(lattice, normalization)
    if norm_in is not None:
        columns = norm_in[..., None] * columns
    result = lattice.filter(columns)
    if norm_out is not None:
        result = norm_out[..., None] * result
    return result.reshape(values.shape).to(values.dtype)


def bilateral_filter(values: Tensor, guide: Tensor, sxy: Width, srgb: Width, *, known: Tensor | None = None) -> Tensor:
    """Averages of ``values`` over pixels that lie close in the picture and look alike in ``guide``.

    values: ``(B, C, h, w)``, floating point. guide: ``(B, channels, H, W)`` of any dtype; the values themselves make it the
    bilateral filter, a picture the joint one. Where its size is another than that of ``values``, this is joint bilateral
    upsampling: each value stands at the middle of its cell of the guide and has the cell's mean colour, and the result is read off
    at every pixel of the guide. sxy: standard deviation in pixels of the guide, a number or ``(sx, sy)``. srgb: in the guide's
    units, a number or one a channel. known: weights >= 0 or bool, ``(B, h, w)``: how far each value is to be trusted; 0 is filled
    in from the others (scribbles, sparse depth). Differentiable in values, guide and known.

    Returns ``(B, C, H, W)`` in the dtype of ``values``; pixels that no known value reaches are 0. Raises ValueError for other
    shapes.
    """
    _check_maps(values, guide, known)
    kernel = Bilateral(sxy, srgb)
    widths = values.new_tensor([*kernel.widths_xy, *kernel.widths_channels(guide.shape[1])], dtype=torch.float64)
    columns, colours = _engine_floats(values, values), _engine_floats(guide, values)
    weights = torch.ones_like(columns[:, :1]) if known is None else known.to(columns.dtype)[:, None]
    # A last channel of ones collects the sum of the weights on the way.
    columns = torch.cat([columns * weights, weights], dim=1).flatten(2).transpose(1, 2)
    positions = grid_positions(guide.shape[2:], None, colours.dtype, colours.device)
    features = kernel_features(positions, gather_points(colours, None), widths.log())
    pixels = features.shape[1]
    if values.shape[2:] != guide.shape[2:]:
        features = torch.cat([features, _cell_features(colours, values.shape[2:], widths)], dim=1)
        columns = F.pad(columns, (0, 0, pixels, 0))
    sums = build_lattice(features).filter(columns)[:, :pixels]
    result = sums[..., :-1] / (sums[..., -1:] + NORM_EPSILON)
    return result.transpose(1, 2).reshape(*values.shape[:2], *guide.shape[2:]).to(values.dtype)


def _check_maps(values: Tensor, guide: Tensor, known: Tensor | None) -> None:
    check_tensor(known, "known", optional=True)
    for tensor, name in ((values, "values"), (guide, "guide")):
        check_tensor(tensor, name)
        if tensor.is_complex():
            raise TypeError(f"{name} must hold real numbers; got {tensor.dtype}")
        if tensor.ndim != 4 or tensor.numel() == 0:
            raise ValueError(f"{name} must have shape (B, C, H, W), none of them 0; got {tuple(tensor.shape)}")
    check_floats(values, "values")
    if len(guide) != len(values):
        raise ValueError(f"guide must hold the {len(values)} images of values; got {len(guide)}")
    for given, name in ((guide, "guide"), (known, "known")):
        if given is not None:
            check_device(given, name, values, "values")
    if known is not None and known.shape != (len(values), *values.shape[2:]):
        raise ValueError(f"known must have shape {(len(values), *values.shape[2:])}; got {tuple(known.shape)}")
    if known is not None and may_read(known, may_wait=False):
        low, high = extremes(known)
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"known must hold finite weights >= 0; got values in {low:g}..{high:g}")


def _cell_features(colours: Tensor, cells: torch.Size, widths: Tensor) -> Tensor:
    """Features ``(B, n, 2 + channels)`` of a coarser (or finer) grid of ``cells`` (h, w) laid over the picture."""
    scale = colours.new_tensor([size / count for size, count in zip(colours.shape[2:], cells, strict=True)]).flip(0)
    middles = (grid_positions(cells, None, colours.dtype, colours.device) + 0.5) * scale[:, None] - 0.5
    means = F.adaptive_avg_pool2d(colours, (cells[0], cells[1]))
    return kernel_features(middles, gather_points(means, None), widths.log())


def _engine_floats(tensor: Tensor, values: Tensor) -> Tensor:
    """As float64 where the values are, else float32."""
    return tensor.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
