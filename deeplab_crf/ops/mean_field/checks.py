"""Checks of the arguments that mean field and its derivative have in common."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from deeplab_crf.ops.lattice.operators import check_lattice
from deeplab_crf.ops.mean_field.terms import TermTensors, check_order_shape
from deeplab_crf.ops.tensors import check_device, check_like, check_shape
from deeplab_crf.runtime.checks import whole_number


def check_scores(scores: Tensor, name: str, order: Tensor | None, iterations: int) -> None:
    """Raise unless ``scores`` are ``(B, N, L)``, and order and iterations fit them."""
    if scores.ndim != 3 or scores.numel() == 0:
        raise ValueError(f"{name} must have shape (B, N, L), none of them 0; got {tuple(scores.shape)}")
    whole_number(iterations, "iterations", 0)
    if order is not None:
        check_order_shape(order, scores.shape[1])
        check_device(order, scores, "order", name)


def check_terms(kernels: ModuleType, scores: Tensor, name: str, tensors: TermTensors) -> None:
    """Raise unless ``tensors`` describe kernels over the points and labels of ``scores`` ``(B, N, L)``. kernels: the module
    with the backend's ``check_lattice``."""
    batch, points, labels = scores.shape
    if len({len(entries) for entries in tensors}) != 1:
        raise ValueError(f"lists must have one entry a kernel each; got {[len(entries) for entries in tensors]}")
    for rows, weights, structure, norm_in, norm_out, compatibility in zip(*tensors, strict=True):
        check_lattice(kernels, rows, weights, structure, batch, points)
        check_like(weights, scores, "weights", name)
        check_like(compatibility, scores, "compatibilities", name)
        if tuple(compatibility.shape) not in ((), (labels,), (labels, labels)):
            raise ValueError(
                f"compatibilities must have shape (), ({labels},) or ({labels}, {labels}); got {tuple(compatibility.shape)}"
            )
        for norm, norm_name in ((norm_in, "norms_in"), (norm_out, "norms_out")):
            if norm.numel():
                check_like(norm, scores, norm_name, name)
                check_shape(norm, (batch, points), norm_name)
