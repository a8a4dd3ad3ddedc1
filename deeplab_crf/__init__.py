"""Fully connected CRFs on the permutohedral lattice, fast. See README.md.

Names are loaded when they are first used: importing the package costs next to nothing.
"""

from __future__ import annotations

from deeplab_crf._lazy import check_compiled_module, load_name

TYPE_CHECKING = False  # As typing's own for type checkers; importing typing would take longer than the package itself.

_HOMES = {
    "Bilateral": "deeplab_crf.core.pairwise",
    "Gaussian": "deeplab_crf.core.pairwise",
    "PairwiseKernel": "deeplab_crf.core.pairwise",
    "PRESETS": "deeplab_crf.core.presets",
    "Preset": "deeplab_crf.core.presets",
    "get_preset": "deeplab_crf.core.presets",
    "load_preset": "deeplab_crf.core.presets",
    "save_preset": "deeplab_crf.core.presets",
    "Energy": "deeplab_crf.core.mean_field",
    "MeanField": "deeplab_crf.core.mean_field",
    "MeanFieldResult": "deeplab_crf.core.mean_field",
    "PermutohedralLattice": "deeplab_crf.core.lattice",
    "dense_crf": "deeplab_crf.crf.functional",
    "ImageCRF": "deeplab_crf.core.image_crf",
    "get_num_threads": "deeplab_crf.runtime.threads",
    "set_num_threads": "deeplab_crf.runtime.threads",
    "native_info": "deeplab_crf.runtime.info",
    "__version__": "deeplab_crf.runtime.info",
    "install_as_pydensecrf": "deeplab_crf.pydensecrf",
    # From here on, torch is needed.
    "DenseCRF": "deeplab_crf.crf.dense_crf",
    "DenseCRFLoss": "deeplab_crf.crf.losses",
    "Diagnosis": "deeplab_crf.crf.diagnosis",
    "ErrorReport": "deeplab_crf.crf.error_report",
    "aspp_sum": "deeplab_crf.ops.conv.operators",
    "bilateral_filter": "deeplab_crf.crf.filters",
    "conv_algorithm": "deeplab_crf.ops.conv.algorithms",
    "diagnose": "deeplab_crf.crf.diagnosis",
    "dilated_conv2d": "deeplab_crf.ops.conv.operators",
    "entropy": "deeplab_crf.crf.diagnosis",
    "error_report": "deeplab_crf.crf.error_report",
    "get_conv_algorithm": "deeplab_crf.ops.conv.algorithms",
    "load_crfasrnn_state_dict": "deeplab_crf.crf.crfasrnn",
    "map_labels": "deeplab_crf.crf.diagnosis",
    "marginals": "deeplab_crf.crf.diagnosis",
    "permutohedral_filter": "deeplab_crf.crf.filters",
    "plot_convergence": "deeplab_crf.crf.diagnosis",
    "set_conv_algorithm": "deeplab_crf.ops.conv.algorithms",
}

if TYPE_CHECKING:
    from typing import Any

    from deeplab_crf.core.image_crf import ImageCRF
    from deeplab_crf.core.lattice import PermutohedralLattice
    from deeplab_crf.core.mean_field import Energy, MeanField, MeanFieldResult
    from deeplab_crf.core.pairwise import Bilateral, Gaussian, PairwiseKernel
    from deeplab_crf.core.presets import PRESETS, Preset, get_preset, load_preset, save_preset
    from deeplab_crf.crf.crfasrnn import load_crfasrnn_state_dict
    from deeplab_crf.crf.dense_crf import DenseCRF
    from deeplab_crf.crf.diagnosis import Diagnosis, diagnose, entropy, map_labels, marginals, plot_convergence
    from deeplab_crf.crf.error_report import ErrorReport, error_report
    from deeplab_crf.crf.filters import bilateral_filter, permutohedral_filter
    from deeplab_crf.crf.functional import dense_crf
    from deeplab_crf.crf.losses import DenseCRFLoss
    from deeplab_crf.ops.conv.algorithms import conv_algorithm, get_conv_algorithm, set_conv_algorithm
    from deeplab_crf.ops.conv.operators import aspp_sum, dilated_conv2d
    from deeplab_crf.pydensecrf import install_as_pydensecrf
    from deeplab_crf.runtime.info import __version__, native_info
    from deeplab_crf.runtime.threads import get_num_threads, set_num_threads

__all__ = [
    "PRESETS",
    "Bilateral",
    "DenseCRF",
    "DenseCRFLoss",
    "Diagnosis",
    "Energy",
    "ErrorReport",
    "Gaussian",
    "ImageCRF",
    "MeanField",
    "MeanFieldResult",
    "PairwiseKernel",
    "PermutohedralLattice",
    "Preset",
    "__version__",
    "aspp_sum",
    "bilateral_filter",
    "conv_algorithm",
    "dense_crf",
    "diagnose",
    "dilated_conv2d",
    "entropy",
    "error_report",
    "get_conv_algorithm",
    "get_num_threads",
    "get_preset",
    "install_as_pydensecrf",
    "load_crfasrnn_state_dict",
    "load_preset",
    "map_labels",
    "marginals",
    "native_info",
    "permutohedral_filter",
    "plot_convergence",
    "save_preset",
    "set_conv_algorithm",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name == "_native":
        check_compiled_module(__name__, name)
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
