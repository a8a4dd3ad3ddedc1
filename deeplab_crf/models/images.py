"""What people call an image, as the RGB tensors that the pipeline sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from deeplab_crf.core.image_range import is_whole, map_to_bytes, resolve_image_range
from deeplab_crf.crf.inputs import extremes
from deeplab_crf.data.rasters import pixels_of

ImageLike: TypeAlias = "Image.Image | NDArray[Any] | Tensor"


def as_images(images: ImageLike | Sequence[ImageLike], image_range: Sequence[float] | None = None) -> list[Tensor]:
    """Float32 RGB ``(3, H, W)`` in 0..255 of one image or several.

    PIL images of any mode (turned upright as their EXIF says, transparency dropped); arrays ``(H, W)``, ``(H, W, 3)`` or
    ``(H, W, 4)`` and tensors ``(3, H, W)`` or ``(B, 3, H, W)`` in RGB. image_range: their values of black and white; None: as their
    dtype and values tell, see `resolve_image_range`. Raises TypeError and ValueError that say which image is at fault.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        images = list(images)
    elif isinstance(images, Tensor | np.ndarray | Image.Image):
        images = [images]
    tensors = [_as_image(image, f"images[{i}]", image_range) for i, image in enumerate(images)]
    if not tensors:
        raise ValueError("images must hold at least one image; got none")
    return tensors


def _as_image(image: ImageLike, name: str, image_range: Sequence[float] | None) -> Tensor:
    if isinstance(image, Image.Image):
        image = pixels_of(ImageOps.exif_transpose(image))
    if isinstance(image, np.ndarray):
        image = _channels_first(image, name)
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a PIL image, a NumPy array or a tensor; got {type(image).__name__}")
    return _checked(image, name, image_range)


def _channels_first(array: NDArray[Any], name: str) -> Tensor:
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        cure = (
            ". Move channels last with np.moveaxis(image, 0, -1)"
            if array.ndim == 3 and array.shape[0] in (3, 4)
            else ""
        )
        raise ValueError(f"{name} must have shape (H, W), (H, W, 3) or (H, W, 4); got {array.shape}{cure}")
    rgb = array[:, :, :3].transpose(2, 0, 1)
    if rgb.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers in 0..255; got {rgb.dtype}")
    if rgb.dtype not in (np.uint8, np.float16, np.float32, np.int64):  # torch knows those of every size and byte order
        rgb = rgb.astype(np.float64 if rgb.dtype.kind == "f" else np.int64)
    return torch.from_numpy(np.ascontiguousarray(rgb))


def _checked(image: Tensor, name: str, image_range: Sequence[float] | None) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        cure = ". Move channels first with .movedim(-1, 0)" if image.ndim == 3 and image.shape[-1] == 3 else ""
        raise ValueError(f"{name} must have shape (3, H, W) and not be empty; got {tuple(image.shape)}{cure}")
    if image.is_complex() or image.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers in 0..255; got {image.dtype}")
    values = image.float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} must be finite; got NaN or inf")
    units = resolve_image_range(
        image_range, image.dtype, lambda: extremes(values), whole=lambda: is_whole(values), name=name
    )
    mapped: Tensor = map_to_bytes(values, units)
    return mapped
