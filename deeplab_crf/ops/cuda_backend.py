"""Which compiled module runs a tensor's kernels, and on which stream."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from torch import Tensor, cuda


class Engine(NamedTuple):
    """module: deeplab_crf._cuda. queue: number of the device, and its stream as an address, as the module's functions take them."""

    module: Any
    queue: tuple[int, int]

    def function(self, name: str) -> Any:
        """A function of the module."""
        return getattr(self.module, name)


def engine_for(tensor: Tensor) -> Engine:
    """The engine of a CUDA tensor's device, on the stream that is current there."""
    index = tensor.get_device()
    # Imported when used: only builds that found nvcc have the module.
    return Engine(importlib.import_module("deeplab_crf._cuda"), (index, cuda.current_stream(index).cuda_stream))


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, in which nothing may wait for the device."""
    return bool(cuda.is_available() and cuda.is_current_stream_capturing())
