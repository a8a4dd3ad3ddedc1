"""Fully connected CRFs on the permutohedral lattice, fast. See README.md.

Names are loaded when they are first used: importing the package costs nothing but this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Bilateral": "deeplab_crf.kernels",
    "Gaussian": "deeplab_crf.kernels",
    "PairwiseKernel": "deeplab_crf.kernels",
    "PRESETS": "deeplab_crf.presets",
    "Preset": "deeplab_crf.presets",
    "get_preset": "deeplab_crf.presets",
    "Energy": "deeplab_crf.core.mean_field",
    "MeanField": "deeplab_crf.core.mean_field",
    "MeanFieldResult": "deeplab_crf.core.mean_field",
    "PermutohedralLattice": "deeplab_crf.core.lattice",
    "dense_crf": "deeplab_crf.core.dense_crf",
    "ImageCRF": "deeplab_crf.core.dense_crf",
    "get_num_threads": "deeplab_crf.core.threads",
    "set_num_threads": "deeplab_crf.core.threads",
    "native_info": "deeplab_crf.core.info",
    "install_as_pydensecrf": "deeplab_crf.pydensecrf",
}

if TYPE_CHECKING:
    from deeplab_crf.core.dense_crf import ImageCRF, dense_crf
    from deeplab_crf.core.info import native_info
    from deeplab_crf.core.lattice import PermutohedralLattice
    from deeplab_crf.core.mean_field import Energy, MeanField, MeanFieldResult
    from deeplab_crf.core.threads import get_num_threads, set_num_threads
    from deeplab_crf.kernels import Bilateral, Gaussian, PairwiseKernel
    from deeplab_crf.presets import PRESETS, Preset, get_preset
    from deeplab_crf.pydensecrf import install_as_pydensecrf

__all__ = [
    "PRESETS",
    "Bilateral",
    "Energy",
    "Gaussian",
    "ImageCRF",
    "MeanField",
    "MeanFieldResult",
    "PairwiseKernel",
    "PermutohedralLattice",
    "Preset",
    "__version__",
    "dense_crf",
    "get_num_threads",
    "get_preset",
    "install_as_pydensecrf",
    "native_info",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
