"""Parameters of CRF-RNN layers (Zheng et al., ICCV 2015) as crfasrnn_pytorch saves them (github.com/sadeepj/crfasrnn_pytorch)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deeplab_crf.crf.dense_crf import DenseCRF

SPATIAL = "spatial_ker_weights"
BILATERAL = "bilateral_ker_weights"
COMPATIBILITY = "compatibility_matrix"


@torch.no_grad()
def load_crfasrnn_state_dict(crf: DenseCRF, state_dict: Mapping[str, Tensor]) -> None:
    """Make ``crf`` compute what the CRF-RNN layer with these parameters does.

    crfasrnn_pytorch refines by ``logits + mu (W_spatial K_spatial Q + W_bilateral K_bilateral Q)``, all three ``(L, L)``: its
    layer is ``DenseCRF.from_preset("crfasrnn", L, compatibility="matrix")`` with matrices ``A_m = mu W_m`` and weights of 1. (It
    trains mu and W_m, of which only the products matter.) Its result lacks our log_softmax, which changes neither labels nor
    losses on a softmax.

    crf: with ``compatibility="matrix"`` and two kernels, one `Gaussian` and one `Bilateral`. Bandwidths, iterations and
    normalization are not saved by crfasrnn_pytorch, so they are left alone; its own are those of the preset "crfasrnn".
    state_dict: with ``spatial_ker_weights``, ``bilateral_ker_weights`` and ``compatibility_matrix``, alone or all behind one
    prefix such as ``crfrnn.``. Of the state of a whole network, pass the entries of its layer:
    ``{k: v for k, v in state.items() if k.startswith("crfrnn.")}``.

    Raises ValueError that lists what is missing, what is not known and what has another shape; nothing is loaded then.
    """
    if sorted(crf.bilateral) != [False, True] or crf.compatibility is None or crf.compatibility.ndim != 3:
        shape = None if crf.compatibility is None else tuple(crf.compatibility.shape)
        raise ValueError(
            'crf must have compatibility="matrix" and two kernels, a Gaussian and a Bilateral; got '
            f"{len(crf.bilateral)} kernels and compatibility of shape {shape}. Make it with "
            'DenseCRF.from_preset("crfasrnn", num_classes, compatibility="matrix")'
        )
    labels = crf.compatibility.shape[-1]
    matrices = _matrices(state_dict, labels)
    for kernel, bilateral in enumerate(crf.bilateral):
        agreement = matrices[COMPATIBILITY] @ matrices[BILATERAL if bilateral else SPATIAL]
        crf.compatibility[kernel] = agreement.to(crf.compatibility)
    crf.weights.fill_(1)


def _matrices(state_dict: Mapping[str, Tensor], labels: int) -> dict[str, Tensor]:
    """The three matrices, float64, by their names without prefix."""
    wanted = (SPATIAL, BILATERAL, COMPATIBILITY)
    prefixes = {name[: -len(ending)] for name in state_dict for ending in wanted if name.endswith(ending)}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    expected = {prefix + name for name in wanted}
    faults = [f"missing {name}" for name in sorted(expected - set(state_dict))]
    faults += [f"not known {name}" for name in sorted(set(state_dict) - expected)]
    for name in sorted(expected & set(state_dict)):
        shape = tuple(state_dict[name].shape)
        if shape != (labels, labels):
            faults.append(f"{name} has shape {shape} instead of {(labels, labels)}")
    if faults:
        raise ValueError(
            f"state_dict must hold {', '.join(wanted)}, each {(labels, labels)}, alone or behind one prefix; "
            f"got: {'; '.join(faults)}"
        )
    return {name: state_dict[prefix + name].double() for name in wanted}
