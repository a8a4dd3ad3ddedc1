"""The compiled CUDA engine, and where it works."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


class Engine(NamedTuple):
    """The native module, and the device and stream that its functions take."""

    module: ModuleType
    queue: tuple[int, int]


def engine_for(tensor: Tensor) -> Engine:
    """For work on a CUDA tensor, on the current stream of its device."""
    device = tensor.device.index
    return Engine(importlib.import_module("deeplab_crf._cuda"), (device, torch.cuda.current_stream(device).cuda_stream))
