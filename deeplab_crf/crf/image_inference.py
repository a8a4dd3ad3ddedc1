"""`dense_crf` on a device: tensors in, tensors out, the whole batch at once. Rules and errors are those of core/image_crf.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_crf.core.arrays import as_real_array
from deeplab_crf.core.energies import energy_error
from deeplab_crf.core.image_crf import (
    Refinement,
    check_image_shape,
    check_image_size,
    check_kernel,
    colour_widths,
    features_first,
)
from deeplab_crf.core.image_range import BYTES, is_whole, map_to_bytes, resolve_image_range
from deeplab_crf.core.mean_field import check_compat, check_steps, not_finite
from deeplab_crf.core.pairwise import Gaussian, Kernel, PairwiseKernel
from deeplab_crf.core.scores import (
    LARGEST_TABLE,
    SMALLEST_PROBABILITY,
    check_batch,
    check_label_kind,
    check_probability_range,
    check_scores_shape,
    exactly_one,
    label_costs,
    label_table,
    num_labels_of,
    unsure_pixels,
)
from deeplab_crf.crf.inputs import accepted_energies, extremes
from deeplab_crf.crf.points import Grid, walked_grid
from deeplab_crf.ops.lattice.features import scaled_features
from deeplab_crf.ops.lattice.operators import build_lattice, normalisation
from deeplab_crf.ops.mean_field.forward import PairwiseTerm, Updates, mean_field
from deeplab_crf.ops.mean_field.layout import pack_unary
from deeplab_crf.runtime.threads import resolve_threads

_ARRAY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64, torch.uint8: np.uint8}


class _Target(NamedTuple):
    """Where to compute, and in which dtype."""

    device: torch.device
    dtype: torch.dtype


def refine_tensors(image: Any, scores: Mapping[str, Any], what: Refinement, device: torch.device) -> Tensor:
    """`dense_crf` on ``device``: arrays are copied there, and so are tensors that lie elsewhere. Returns ``(L, H, W)`` or
    ``(B, L, H, W)`` on the device, without gradients. Waits for the device to look at values: NaN, ranges, counts."""
    check_steps(what.model.iterations, what.damping, what.tolerance)
    resolve_threads(what.threads)  # of no use here, but wrong ones are wrong on any device
    target = _Target(device, torch.float64 if what.dtype == np.float64 else torch.float32)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        source = exactly_one(scores)
        pixels = None if image is None else _real(image, "image")
        given, batched = _scores(source, scores[source], pixels, target)
        count = num_labels_of(source, given, what.labels)
        unary = _energies(source, given, scores[source], what, count)
        size = (given.shape[-2], given.shape[-1])
        colours = None
        if pixels is not None:
            if batched:
                check_batch(source, given.shape, pixels.shape)
            colours = _colours(pixels if batched else pixels[None], size, what, target)
        q = mean_field(
            unary,
            _terms(colours, unary, size, what, target),
            int(what.model.iterations),
            order=walked_grid(size, unary, target.dtype).order,
            updates=Updates(float(what.damping), float(what.tolerance)),
            log_output=False,
        )
        probabilities = q.transpose(1, 2).reshape(len(q), -1, *size)  # a view
    return probabilities if batched else probabilities[0]


def _scores(source: str, value: Any, image: Tensor | NDArray[Any] | None, target: _Target) -> tuple[Tensor, bool]:
    """Scores on the device with a batch dimension, labels in int64 and others in the engine's dtype; and whether they came with
    that dimension."""
    given = _real(value, source)
    batched = check_scores_shape(source, given.shape, None if image is None else image.shape)
    if source == "labels":
        floats = given.dtype.is_floating_point if isinstance(given, Tensor) else given.dtype.kind == "f"
        check_label_kind(not floats, given.dtype)
        target = target._replace(dtype=torch.int64)
    tensor = _on_device(given, target)
    return tensor if batched else tensor[None], batched


def _energies(source: str, scores: Tensor, given: Any, what: Refinement, count: int) -> Tensor:
    """Unary energies ``(B, N, L)`` of any strides from scores ``(B, L, H, W)``, or labels ``(B, H, W)``; given: as they came."""
    if source == "labels":
        return _label_energies(scores.flatten(1), count, what)
    flat = scores.flatten(2)
    finite = torch.isfinite(flat)
    if not finite.all():
        if source == "probabilities":
            image, label, point = (~finite).nonzero()[0].tolist()
            raise not_finite(source, what.dtype, flat[image, label, point].item(), label, point)
        return _capped_energies(source, flat, given, what)
    if source == "logits":
        return pack_unary(flat, check=False)
    if source == "probabilities":
        low, high = torch.aminmax(flat)
        check_probability_range(low.item(), high.item())
        flat = -flat.clamp(SMALLEST_PROBABILITY, 1).log()
    return flat.transpose(1, 2)


def _label_energies(labels: Tensor, count: int, what: Refinement) -> Tensor:
    """Unary energies ``(B, N, L)`` of labels ``(B, N)``; see `label_costs`."""
    unsure = unsure_pixels(labels, count, what.labels)
    if count <= LARGEST_TABLE:
        table = torch.from_numpy(label_table(count, what.labels.confidence, what.dtype)).to(labels.device)
        return table[torch.where(unsure, count, labels)]
    own, others, unlabelled = label_costs(count, what.labels.confidence)
    dtype = torch.float64 if what.dtype == np.float64 else torch.float32
    energies = torch.full((*labels.shape, count), others, dtype=dtype, device=labels.device)
    energies.scatter_(2, labels.where(~unsure, 0)[..., None], own)
    energies[unsure] = unlabelled
    return energies


def _capped_energies(source: str, flat: Tensor, given: Any, what: Refinement) -> Tensor:
    """Energies ``(B, N, L)`` from logits or energies ``(B, L, N)`` that are not all finite; given: as they came."""
    negated = source == "logits"
    came = _on_device(_real(given, source), _Target(flat.device, torch.float64)).reshape(flat.shape)
    too_large = torch.isinf(flat) & torch.isfinite(came)
    energies, wrong = accepted_energies(
        (-flat if negated else flat).masked_fill(too_large, float("nan")).transpose(1, 2)
    )
    if wrong is None:
        return energies
    image, point, label = wrong
    values = came[image, :, point].cpu().numpy()
    raise energy_error(source, values, label, f", point {point}", negated=negated, dtype=what.dtype)


def _colours(images: Tensor | NDArray[Any], size: tuple[int, int], what: Refinement, target: _Target) -> Tensor:
    """Images ``(B, H, W)`` or ``(B, H, W, channels)`` as ``(B, channels, N)`` in 0..255 on the device; bytes stay bytes."""
    check_image_shape(images.shape[1:])
    check_image_size(images.shape[1:], size)
    bytes_given = images.dtype in (np.dtype(np.uint8), torch.uint8)
    if bytes_given and what.image_range in (None, BYTES):
        target = target._replace(dtype=torch.uint8)
    tensor = _on_device(images, target)
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError("image must be finite; got NaN or inf")
    widths = colour_widths(what.model.kernels)
    if widths:
        image_range = resolve_image_range(
            what.image_range, images.dtype, lambda: extremes(tensor), widths=widths, whole=lambda: is_whole(tensor)
        )
        tensor = map_to_bytes(tensor, image_range)
    return tensor.reshape(len(tensor), size[0] * size[1], -1).transpose(1, 2)


def _terms(
    colours: Tensor | None, unary: Tensor, size: tuple[int, int], what: Refinement, target: _Target
) -> list[PairwiseTerm]:
    """The kernels of the model on lattices over the walked pixels."""
    grid, (batch, _, labels) = walked_grid(size, unary, target.dtype), unary.shape
    terms = []
    for kernel in what.model.kernels:
        features = _features(kernel, colours, size, grid, target).expand(batch, -1, -1)
        lattice = build_lattice(features.transpose(1, 2))
        norms = normalisation(lattice, kernel.normalization or what.model.normalization)
        compat = torch.from_numpy(check_compat(kernel.compatibility, labels, what.dtype))
        terms.append(PairwiseTerm(lattice, *norms, compat.to(target.device)))
    return terms


def _features(kernel: Kernel, colours: Tensor | None, size: tuple[int, int], grid: Grid, target: _Target) -> Tensor:
    """Features ``(B, d, N)`` in the order of the walk, B = 1 where nothing depends on the image."""
    check_kernel(kernel, colours is not None)
    if isinstance(kernel, PairwiseKernel):
        given: Tensor = features_first(_on_device(_real(kernel.features, "features"), target), *size)
        return given[None, :, grid.pixels]
    widths: tuple[float, ...] = kernel.widths_xy
    if isinstance(kernel, Gaussian):
        colours = None
    else:
        assert colours is not None  # check_kernel
        widths += kernel.widths_channels(colours.shape[1])
    scales = torch.tensor(widths, dtype=target.dtype, device=target.device)
    return scaled_features(grid.positions[None], colours, grid.pixels, scales)


def _real(value: Any, name: str) -> Tensor | NDArray[Any]:
    """A tensor as it is, anything else as an array. Raises TypeError unless the numbers are real."""
    if not isinstance(value, Tensor):
        return as_real_array(value, name)
    if value.is_complex() or value.is_quantized:
        raise TypeError(f"{name} must be an array of real numbers; got dtype {value.dtype}")
    return value


def _on_device(value: Tensor | NDArray[Any], target: _Target) -> Tensor:
    """The values on the device, in the dtype."""
    if isinstance(value, Tensor):
        return value.to(target.device, target.dtype)
    array = np.require(value, _ARRAY_DTYPES[target.dtype], ["C", "A", "W"])
    return torch.from_numpy(array).to(target.device)
