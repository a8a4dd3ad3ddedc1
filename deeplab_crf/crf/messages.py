"""What the kernels of a layer's call do to values, one at a time: for diagnosis, where the engine does it all in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deeplab_crf.crf.dense_crf import CRFProblem
from deeplab_crf.crf.exact import ExactKernel
from deeplab_crf.ops.mean_field.forward import PairwiseTerm

Message = Callable[[Tensor], Tensor]
"""Values ``(B, N, C)`` to ``K values``, normalised; points in the order of the features. Masked points send and receive 0."""


def lattice_messages(problem: CRFProblem) -> list[Message]:
    """``K_m`` of every kernel on lattices, which are built here."""

    def message_of(term: PairwiseTerm) -> Message:
        def message(values: Tensor) -> Tensor:
            if term.norm_in is not None:
                values = term.norm_in[..., None] * values
            result = term.lattice.filter(values)
            return result if term.norm_out is None else term.norm_out[..., None] * result

        return message

    return [message_of(term) for term in problem.terms()]


def exact_messages(problem: CRFProblem) -> list[Message]:
    """``K_m`` of every kernel over all pairs of points."""
    images = range(len(problem.unary))
    parts = [slice(None) if problem.mask is None else problem.mask[image] for image in images]

    def message_of(features: Tensor, normalization: str) -> Message:
        kernels = [ExactKernel(features[image][parts[image]], normalization) for image in images]

        def message(values: Tensor) -> Tensor:
            result = torch.zeros_like(values)
            for image in images:
                result[image, parts[image]] = kernels[image](values[image, parts[image]])
            return result

        return message

    return [message_of(*kernel) for kernel in zip(problem.features, problem.normalizations, strict=True)]


def walked_unary(problem: CRFProblem) -> Tensor:
    """The energies ``(B, N, L)`` in the order of the features."""
    return problem.unary if problem.order is None else problem.unary.index_select(1, problem.order)
