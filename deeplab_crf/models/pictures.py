"""What people call an image, as the RGB tensors that the pipeline sees."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deeplab_crf.data.images import picture_array, upright

Picture: TypeAlias = "Image.Image | NDArray[Any] | Tensor"


def as_pictures(images: Picture | Sequence[Picture]) -> list[Tensor]:
    """Float32 RGB ``(3, H, W)`` in 0..255 of one image or several.

    PIL images of any mode (turned upright as their EXIF says, transparency dropped, 16 bits scaled to 0..255); arrays ``(H, W)``,
    ``(H, W, 3)`` or ``(H, W, 4)`` and tensors ``(3, H, W)`` or ``(B, 3, H, W)`` in RGB, of uint8, uint16 (scaled) or floats in
    0..255. Raises TypeError and ValueError that say which image is at fault.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        images = list(images)
    elif isinstance(images, Tensor | np.ndarray | Image.Image):
        images = [images]
    pictures = [_as_picture(image, f"images[{i}]") for i, image in enumerate(images)]
    if not pictures:
        raise ValueError("images must hold at least one image; got none")
    return pictures


def _as_picture(image: Picture, name: str) -> Tensor:
    if isinstance(image, Image.Image):
        return _channels_first(picture_array(upright(image)), name)
    if isinstance(image, Tensor):
        return _checked(image, name)
    if isinstance(image, np.ndarray):
        return _channels_first(image, name)
    raise TypeError(f"{name} must be a PIL image, a NumPy array or a tensor; got {type(image).__name__}")


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
    if rgb.dtype == np.uint16:
        rgb = rgb.astype(np.float32) / np.float32(257)
    if rgb.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers in 0..255; got {rgb.dtype}")
    return _checked(torch.from_numpy(np.ascontiguousarray(rgb, dtype=np.float32)), name)


def _checked(image: Tensor, name: str) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        cure = ". Move channels first with .movedim(-1, 0)" if image.ndim == 3 and image.shape[-1] == 3 else ""
        raise ValueError(f"{name} must have shape (3, H, W) and not be empty; got {tuple(image.shape)}{cure}")
    if image.is_complex() or image.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers in 0..255; got {image.dtype}")
    values = image.float() / 257 if image.dtype == torch.uint16 else image.float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} must be finite; got NaN or inf")
    low, high = (float(value) for value in torch.aminmax(values))
    if image.is_floating_point() and low < high <= 1.0:
        warnings.warn(
            f"{name} lies in {low:.3g}..{high:.3g}, but images are expected in 0..255: multiply it by 255", stacklevel=5
        )
    return values
