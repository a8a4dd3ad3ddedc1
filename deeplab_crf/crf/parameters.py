"""The numbers of a dense CRF that may be learned, from kernels that are plain data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deeplab_crf.core.arrays import as_real_array
from deeplab_crf.core.pairwise import Bilateral, Gaussian, Kernel, check_strength
from deeplab_crf.runtime.checks import choice, items_of

COMPATIBILITIES = ("potts", "diagonal", "matrix")


def check_kernels(kernels: Sequence[Kernel]) -> tuple[Gaussian | Bilateral, ...]:
    """The kernels, if there is one and each speaks of positions and colours that the layer sees."""
    given = items_of(kernels, "kernels", "Gaussian or Bilateral")
    if not given:
        raise ValueError("kernels must hold at least one Gaussian or Bilateral; got none")
    chosen = []
    for kernel in given:
        if not isinstance(kernel, Gaussian | Bilateral):
            raise TypeError(
                f"kernels must be Gaussian or Bilateral; got {type(kernel).__name__}. Give features of your own as points "
                "(B, N, d) to a Gaussian, or use deeplab_crf.ops"
            )
        chosen.append(kernel)
    return tuple(chosen)


def initial_weights(kernels: Sequence[Gaussian | Bilateral]) -> Tensor:
    """The kernels' weights, float32 ``(M,)``."""
    return torch.tensor([float(kernel.weight) for kernel in kernels], dtype=torch.float32)


def initial_compatibility(kernels: Sequence[Gaussian | Bilateral], kind: str, num_classes: int | None) -> Tensor | None:
    """Agreement A between labels, so that a kernel adds ``-weight * A @ K Q``: None for Potts, float32 ``(M, L)`` or ``(M, L, L)``
    else. Ones, or the identity, are Potts; a kernel's own ``compat``, whose sign is that of an energy, is ``-A``."""
    choice(kind, COMPATIBILITIES, "compatibility")
    if kind == "potts":
        for kernel in kernels:
            if kernel.compat is not None:
                raise ValueError(
                    'compatibility must be "diagonal" or "matrix" for a kernel that brings its own compat; got "potts"'
                )
        return None
    if num_classes is None:
        raise ValueError(f"num_classes must be given with compatibility={kind!r}; got None")
    return torch.stack([_agreement(kernel, kind, num_classes) for kernel in kernels])


def _agreement(kernel: Gaussian | Bilateral, kind: str, labels: int) -> Tensor:
    diagonal = kind == "diagonal"
    if kernel.compat is None:
        return torch.ones(labels) if diagonal else torch.eye(labels)
    given = as_real_array(kernel.compat, "compat").astype(np.float64)
    check_strength(given, "compat")
    compat = -torch.from_numpy(given.astype(np.float32))
    if tuple(compat.shape) == (labels,):
        return compat if diagonal else torch.diag(compat)
    if tuple(compat.shape) == (labels, labels) and not diagonal:
        return compat
    shapes = f"({labels},)" if diagonal else f"({labels},) or ({labels}, {labels})"
    raise ValueError(
        f"compat of a kernel must have shape {shapes} with num_classes={labels} and compatibility={kind!r}; "
        f"got {tuple(compat.shape)}"
    )


def initial_log_sxy(kernels: Sequence[Gaussian | Bilateral], axes: int) -> Tensor:
    """Logarithms of the spatial standard deviations, ``(M, axes)``.

    Double precision, so that exp gives back the float32 widths bit for bit: the last bit of a feature decides which vertices
    exist where points lie on the faces of simplices, as pixels do."""
    return torch.tensor([kernel.widths_axes(axes) for kernel in kernels], dtype=torch.float64).log()


def initial_log_srgb(kernels: Sequence[Gaussian | Bilateral], channels: int) -> Tensor:
    """Logarithms of the colour standard deviations, ``(bilateral kernels, channels)``, in double precision as above."""
    widths = [kernel.widths_channels(channels) for kernel in kernels if isinstance(kernel, Bilateral)]
    return torch.tensor(widths, dtype=torch.float64).reshape(-1, channels).log()
