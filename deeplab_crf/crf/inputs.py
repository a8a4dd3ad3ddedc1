"""What a layer is called with, checked: each error names the argument, what was expected, what came, and the cure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deeplab_crf.core.energies import LARGEST_ENERGY
from deeplab_crf.core.image_range import ImageRange, is_whole, resolve_image_range
from deeplab_crf.runtime.checks import shown

# What torch compares; uint16 to uint64 and floats of 8 bits it only converts.
_COMPARED = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


class LayerShape(NamedTuple):
    """What a layer was made for."""

    num_classes: int | None
    spatial_dims: int
    channels: int
    uses_colours: bool


def check_tensor(value: object, name: str, *, optional: bool = False) -> None:
    """Raises TypeError unless ``value`` is a tensor, or None where it is ``optional``."""
    if not isinstance(value, Tensor) and not (optional and value is None):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}. Convert it with torch.as_tensor")


def check_floats(value: Tensor, name: str) -> None:
    """Raises TypeError unless the tensor holds floats."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {value.dtype}. Convert it with .float()")


def check_device(value: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """Raises ValueError unless ``value`` is on the device of ``other``."""
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}; got {value.device}. Move it with .to()"
        )


def check_scores(logits: Tensor, expected: LayerShape) -> None:
    """Raises unless ``logits`` are floats ``(B, L, *space)`` or ``(B, L, N)`` with the layer's labels."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits must be a torch.Tensor; got {type(logits).__name__}. Use deeplab_crf.dense_crf for NumPy arrays"
        )
    check_floats(logits, "logits")
    grid = "(B, L, H, W)" if expected.spatial_dims == 2 else "(B, L, D, H, W)"
    # Comparisons one by one: torch.compile of torch 2.6 finds no symbolic number in a tuple.
    axes = expected.spatial_dims
    if logits.ndim != 3 and not (logits.ndim == 2 + axes and (axes == 2 or axes == 3)):
        hint = ""
        if logits.ndim == 5:
            hint = ". Volumes need spatial_dims=3"
        elif logits.ndim == 4 and expected.spatial_dims == 3:
            hint = ". One volume needs a batch dimension, logits[None]; images need spatial_dims=2"
        raise ValueError(
            f"logits must have shape {grid}, or (B, L, N) for points, with spatial_dims={expected.spatial_dims}; "
            f"got {tuple(logits.shape)}{hint}"
        )
    if logits.numel() == 0:
        raise ValueError(f"logits must not be empty; got shape {tuple(logits.shape)}")
    if expected.num_classes is not None and logits.shape[1] != expected.num_classes:
        raise ValueError(
            f"logits must have the {expected.num_classes} labels of num_classes in dimension 1; got shape {tuple(logits.shape)}"
        )
    check_two_labels(logits)


def check_two_labels(logits: Tensor) -> None:
    """Raises ValueError for logits ``(B, 1, ...)``: a single label has probability 1 everywhere."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must have 2 labels or more in dimension 1; got shape {tuple(logits.shape)}. Of a foreground's logits, "
            "before a sigmoid, make torch.cat([torch.zeros_like(logits), logits], dim=1)"
        )


def check_image(image: Tensor | None, logits: Tensor, expected: LayerShape) -> None:
    """Raises unless ``image`` is there if needed and fits ``logits``: ``(B, channels, *space)``, or points ``(B, N, d)``."""
    points = logits.ndim == 3
    if image is None:
        if points or expected.uses_colours:
            raise ValueError(f"image must be given for {'points' if points else 'a Bilateral kernel'}; got None")
        return
    check_tensor(image, "image")
    if image.is_complex() or image.dtype == torch.bool:
        raise TypeError(f"image must hold real numbers; got {image.dtype}")
    check_device(image, "image", logits, "logits")
    if points:
        _check_points(image, logits, expected)
        return
    wanted = (logits.shape[0], expected.channels, *logits.shape[2:])
    if tuple(image.shape) != wanted:
        cure = ""
        if image.ndim == logits.ndim and image.shape[0] == wanted[0] and image.shape[-1] == expected.channels:
            cure = ". Bring channels first with .movedim(-1, 1)"
        elif image.ndim == logits.ndim and tuple(image.shape[:2]) == wanted[:2]:
            cure = ". Resize the logits to the image, or the image to the logits, with torch.nn.functional.interpolate"
        elif image.ndim == logits.ndim and (image.shape[0], *image.shape[2:]) == (wanted[0], *wanted[2:]):
            cure = f". Give channels={image.shape[1]} to the layer"
        raise ValueError(f"image must have shape {wanted} to fit the logits; got {tuple(image.shape)}{cure}")


def _check_points(points: Tensor, logits: Tensor, expected: LayerShape) -> None:
    axes = expected.spatial_dims
    with_colours = axes + expected.channels
    columns = (with_colours,) if expected.uses_colours else (axes, with_colours)
    wanted = (logits.shape[0], logits.shape[2])
    if points.ndim != 3 or tuple(points.shape[:2]) != wanted or points.shape[2] not in columns:
        raise ValueError(
            f"points must have shape {(*wanted, columns[0])} to fit the logits, (B, N, {axes} coordinates"
            f"{f' and {expected.channels} channels' if expected.uses_colours else ''}); got {tuple(points.shape)}. "
            + (
                "One image needs a batch dimension: logits[None], image[None]"
                if points.shape[1:] == logits.shape[1:]
                else "Set spatial_dims and channels of the layer"
            )
        )


def check_mask(mask: Tensor, logits: Tensor) -> None:
    """Raises unless ``mask`` is bool ``(B, *space)`` on the device of ``logits``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask must be a torch.Tensor of bool, True for real pixels; got {kind}. Convert it with .bool()"
        )
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(mask.shape) != wanted:
        raise ValueError(f"mask must have shape {wanted} to fit the logits; got {tuple(mask.shape)}")
    check_device(mask, "mask", logits, "logits")


def check_spacing(spacing: Tensor | Sequence[float], axes: int, logits: Tensor) -> Tensor:
    """``spacing`` as a tensor ``(axes,)`` or ``(B, axes)`` on the device of ``logits``.

    Raises ValueError for another shape, and for numbers on the CPU that are not positive and finite.
    """
    try:
        given = torch.as_tensor(spacing)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"spacing must hold {axes} numbers; got {shown(spacing)} ({error})") from error
    if given.is_complex():
        raise TypeError(f"spacing must hold real numbers; got {given.dtype}")
    if tuple(given.shape) not in ((axes,), (logits.shape[0], axes)):
        raise ValueError(
            f"spacing must hold {axes} numbers (x, y{', z' if axes == 3 else ''}), or one row of them an image; "
            f"got shape {tuple(given.shape)}"
        )
    if may_read(given, may_wait=False):
        low, high = extremes(given)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"spacing must hold {axes} positive finite numbers; got values in {low:g}..{high:g}")
    return given.to(logits.device)


def accepted_energies(energies: Tensor) -> tuple[Tensor, tuple[int, int, int] | None]:
    """Cap energies of +inf as core/energies.py says, in plain torch on any device, differentiable.

    Args:
        energies: ``(B, N, L)``.

    Returns:
        The energies, and (image, point, label) of the first one that is not accepted, or None. Where values
        cannot be read (see `may_read`): None, and NaN for points that have no label.
    """
    infinite = energies == float("inf")
    nothing_left = infinite.all(dim=-1, keepdim=True)
    capped = torch.where(infinite.any(dim=-1, keepdim=True), energies.clamp(max=LARGEST_ENERGY), energies)
    if not may_read(energies, may_wait=True):
        return capped.masked_fill(nothing_left, float("nan")), None
    wrong = ~torch.isfinite(capped) | nothing_left
    if not wrong.any():
        return capped, None
    image, label, point = wrong.transpose(1, 2).nonzero()[0].tolist()
    return capped, (image, point, label)


def extremes(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest value, NaN where there are none; waits for the device."""
    if values.numel() == 0:
        return math.nan, math.nan
    low, high = torch.aminmax(values.detach() if values.dtype in _COMPARED else values.detach().float())
    return float(low), float(high)


def may_read(values: Tensor, may_wait: bool) -> bool:
    """Whether values may be looked at: not where a compiler or another tensor subclass watches, nor where there are none, and on a
    device only if the caller may wait for it."""
    plain = (
        type(values) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling() and values.device.type != "meta"
    )
    return plain and values.numel() > 0 and (values.is_cpu or may_wait)


def image_units(
    image: Tensor,
    image_range: Sequence[float] | None,
    widths: Sequence[float],
    *,
    inside: Tensor | None = None,
    may_wait: bool = False,
    name: str = "image",
) -> ImageRange:
    """The image's values of black and white by the rule of `resolve_image_range`.

    image: ``(B, channels, ...)``. widths: of the colours. inside: ``(B, ...)``, bool or weights; pixels where it is False or 0,
    such as padding, tell nothing. may_wait: as in `may_read`, without which the values are taken as they are.
    """

    def counted() -> Tensor:
        return image if inside is None else image.movedim(1, -1)[inside > 0]

    readable = may_read(image, may_wait) and (inside is None or may_read(inside, may_wait))
    return resolve_image_range(
        image_range,
        image.dtype,
        (lambda: extremes(counted())) if readable else None,
        widths=widths,
        whole=lambda: is_whole(counted()),
        name=name,
    )
