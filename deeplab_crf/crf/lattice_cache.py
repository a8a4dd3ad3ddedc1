"""Lattices of kernels that do not look at the image: one for all images of a size, so the last few are kept from call to call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_crf.ops.lattice import operators
from deeplab_crf.ops.lattice.operators import Lattice
from deeplab_crf.runtime.locks import ForkSafeLock

_LARGEST_KEPT = 2**20  # points of all images of a call
_MOST_KEPT = 2

_lock = ForkSafeLock()
_kept: OrderedDict[Hashable, NormedLattice] = OrderedDict()


class NormedLattice(NamedTuple):
    """A lattice and its factors, see `normalisation`."""

    lattice: Lattice
    norm_in: Tensor | None
    norm_out: Tensor | None


def may_keep(logits: Tensor) -> bool:
    """Whether lattices over the pixels of ``logits`` ``(B, L, ...)`` are kept at all: not where gradients may be asked for, on
    devices, which build in no time, of large images, and where a compiler or another tensor subclass watches, which must see how
    lattices come about."""
    plain = type(logits) is Tensor and not torch.compiler.is_compiling()
    if not plain or torch.is_grad_enabled() or not logits.is_cpu:
        return False
    return logits.numel() // logits.shape[1] <= _LARGEST_KEPT


def lattice_key(logits: Tensor, *described: Hashable) -> Hashable:
    """The key for `kept_lattice` of a kernel over the pixels of ``logits`` ``(B, L, ...)``; ``described``: all else that counts."""
    # Which kernels built a lattice is part of what it is.
    return (operators.kernels_of(logits), len(logits), *logits.shape[2:], *described)


def kept_lattice(key: Hashable | None, build: Callable[[], NormedLattice]) -> NormedLattice:
    """What ``build`` made for ``key`` before, or makes now; under None it always does. Threads that come at once may both build."""
    if key is None:
        return build()
    with _lock:
        found = _kept.get(key)
        if found is not None:
            _kept.move_to_end(key)
            return found
    made = build()
    with _lock:
        _kept[key] = made
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return made
