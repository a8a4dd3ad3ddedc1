"""Weights in the layouts of the kernels, made once and kept for as long as the weight lives and is the same.

On the CPU that is asked at each call, of the numbers themselves (`_native.fingerprint`, 4 bytes a weight): a version counter does
not see what is written through ``.data``, NumPy or shared memory. On CUDA it is the version counter that is asked, since reading
the numbers would wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from deeplab_crf import _native
from deeplab_crf.ops.tensors import address
from deeplab_crf.runtime.locks import ForkSafeLock

_lock = ForkSafeLock()
# Of each (first) weight: layout -> (marks, packed).
_packed: Any = WeakTensorKeyDictionary()  # has no annotations


def packed_weights(
    owner: Tensor, weights: Sequence[Tensor], layout: Hashable, size: int, pack: Callable[[Tensor], None]
) -> Tensor | None:
    """Packs weights for the kernels on the CPU, or returns what was packed before.

    Args:
        owner: The first weight as the caller has it; what is packed lives as long as it does.
        weights: Aliases of all weights, which no other thread can give other sizes.
        layout: What else the packed weights depend on.
        size: The number of floats.
        pack: Fills them from ``weights``.

    Returns:
        The packed weights. None if a number is not finite: the kernels leave out taps beyond the
        border, where torch multiplies zeros and gets NaN.
    """

    def make() -> Tensor:
        out = torch.zeros(size)  # some layouts leave places between panels as they are
        pack(out)
        return out if bool(torch.isfinite(out).all()) else out.new_empty(0)

    packed = _kept(owner, layout, lambda: [_fingerprint(weight) for weight in weights], make)
    return packed if packed.numel() else None


def packed_on_device(
    owners: Sequence[Tensor],
    weights: Sequence[Tensor],
    layout: Hashable,
    queue: tuple[int, int],
    make: Callable[[], Tensor],
) -> Tensor:
    """Returns ``make()``, a tensor made from ``weights`` on a CUDA device, or what it made before on the same stream. Another
    stream would have to wait for this one: there it is made again. owners: the weights as the caller has them; weights: their
    aliases."""
    pairs = list(zip(owners, weights, strict=True))
    return _kept(owners[0], layout, lambda: [_version(owner, weight, queue) for owner, weight in pairs], make)


def _kept(
    owner: Tensor, layout: Hashable, find_marks: Callable[[], list[Hashable]], make: Callable[[], Tensor]
) -> Tensor:
    """find_marks: of each weight, what changes with its numbers; None: it is not known whether they have changed."""
    marks = find_marks()
    keep = None not in marks
    if keep:
        with _lock:
            found = _packed.get(owner, {}).get(layout)
        if found is not None and found[0] == marks:
            kept: Tensor = found[1]
            return kept
    out = make()
    if keep and find_marks() == marks:  # else another thread wrote to the weights meanwhile
        with _lock:
            _packed.setdefault(owner, {})[layout] = (marks, out)
    return out


def flush_denormals(weight: Tensor) -> Tensor:
    """The weight with 0 for what is smaller than the smallest normal number (1.2e-38 in float32): processors take up to hundreds of
    times as long for products with such numbers. The native packing does the same."""
    return weight.masked_fill(weight.abs() < torch.finfo(weight.dtype).tiny, 0)


def forget_weights() -> int:
    """Drops every packed weight; the next calls make them again. Returns the bytes that were held."""
    with _lock:
        held: int = sum(out.nbytes for layouts in _packed.values() for _, out in layouts.values())
        _packed.clear()
    return held


def _fingerprint(weight: Tensor) -> Hashable:
    """Of the numbers in memory and how they are to be read. None for a tensor with gaps: it is packed each time."""
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
        return None
    numbers = _native.fingerprint(address(weight), weight.numel(), torch.get_num_threads())
    return (numbers, weight.shape, weight.stride())


def _version(owner: Tensor, weight: Tensor, queue: tuple[int, int]) -> Hashable:
    """None for a tensor made in inference mode, which does not count its versions. With a reference to the owner: where a tensor
    died the next one may have its address and version. The rest is the alias's: the owner may have other numbers by now."""
    if weight.is_inference():
        return None
    return (weight._version, weight.data_ptr(), weight.shape, weight.stride(), queue, WeakIdRef(owner))
