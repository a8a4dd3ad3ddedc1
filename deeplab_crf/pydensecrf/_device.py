"""Which device the CRFs of the drop-in run on, and the engine that runs them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplab_crf.core.mean_field import MeanField
from deeplab_crf.runtime.devices import find_device

if TYPE_CHECKING:
    import torch

    from deeplab_crf.crf.device_mean_field import DeviceMeanField

_device: torch.device | None = None


def set_device(device: str) -> None:
    """Where CRFs that are made from now on run: "cpu" (so it begins), "cuda" or "cuda:N". Those there are stay where they are.
    Arrays and results are NumPy's on any device.

    Raises ValueError for other names, ImportError where torch is missing, and RuntimeError where CUDA cannot be used; each says
    what to do, and changes nothing.
    """
    global _device
    _device = find_device(device)


def make_mean_field(num_points: int, num_labels: int, order: NDArray[np.int32] | None) -> MeanField | DeviceMeanField:
    """The engine for one CRF. order: as `MeanField` takes it."""
    # pydensecrf embeds points in blocks of four and fills the last one up with zero features. Their vertices exist.
    touch_origin = num_points % 4 != 0
    if _device is None:
        return MeanField(num_points, num_labels, dtype=np.float32, order=order, touch_origin=touch_origin)
    from deeplab_crf.crf.device_mean_field import DeviceMeanField  # here: needs torch

    return DeviceMeanField(num_points, num_labels, _device, order=order, touch_origin=touch_origin)
