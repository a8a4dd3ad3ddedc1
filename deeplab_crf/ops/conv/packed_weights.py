"""A cache of weights in the layouts of the kernels, valid while the weight lives and is unchanged.

On the CPU, each call checks the values themselves (`_native.fingerprint`, 4 bytes per weight), because a
version counter misses writes through ``.data``, NumPy or shared memory. On CUDA the version counter
decides, since reading the values would wait for the device.
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
# (First) weight -> layout -> (stamps, packed).
_packed: Any = WeakTensorKeyDictionary()  # has no annotations


def packed_weights(
    owner: Tensor, weights: Sequence[Tensor], layout: Hashable, size: int, pack: Callable[[Tensor], None]
) -> Tensor | None:
    """Return weights packed for the kernels on the CPU, from the cache if they are unchanged.

    Args:
        owner: The caller's tensor of the first weight; the cache entry lives as long as it does.
        weights: Aliases of all weights, whose sizes no other thread can change.
        layout: Everything else that the packed weights depend on.
        size: The number of packed floats.
        pack: Fills them from ``weights``.

    Returns:
        The packed weights, or None if a value is not finite: the kernels leave out taps beyond the
        border, where torch multiplies with zeros and gets NaN.
    """

    def make() -> Tensor:
        out = torch.zeros(size)  # some layouts do not write between panels
        pack(out)
        return out if bool(torch.isfinite(out).all()) else out.new_empty(0)

    packed = _cached(owner, layout, lambda: [_fingerprint(weight) for weight in weights], make)
    return packed if packed.numel() else None


def packed_on_device(
    owners: Sequence[Tensor],
    weights: Sequence[Tensor],
    layout: Hashable,
    queue: tuple[int, int],
    make: Callable[[], Tensor],
) -> Tensor:
    """Return ``make()``, a tensor made from weights on a CUDA device, or its cached result.

    Each stream has a cache of its own, since another stream would have to wait for this one.

    Args:
        owners: The caller's tensors.
        weights: Their aliases.
        layout: Everything else that the result depends on.
        queue: Device and stream.
        make: Computes the result.

    Returns:
        The result.
    """
    pairs = list(zip(owners, weights, strict=True))
    return _cached(owners[0], layout, lambda: [_version(owner, weight, queue) for owner, weight in pairs], make)


def _cached(
    owner: Tensor, layout: Hashable, find_stamps: Callable[[], list[Hashable]], make: Callable[[], Tensor]
) -> Tensor:
    """Look up or make packed weights; a stamp of None means that a change could not be noticed."""
    stamps = find_stamps()
    is_cacheable = None not in stamps
    if is_cacheable:
        with _lock:
            found = _packed.get(owner, {}).get(layout)
        if found is not None and found[0] == stamps:
            packed: Tensor = found[1]
            return packed
    out = make()
    if is_cacheable and find_stamps() == stamps:  # else another thread wrote to the weights meanwhile
        with _lock:
            _packed.setdefault(owner, {})[layout] = (stamps, out)
    return out


def flush_denormals(weight: Tensor) -> Tensor:
    """Return the weight with 0 for values below the smallest normal number (1.2e-38 in float32).

    Processors take up to hundreds of times as long for products with such values. The native packing
    does the same.
    """
    return weight.masked_fill(weight.abs() < torch.finfo(weight.dtype).tiny, 0)


def forget_weights() -> int:
    """Drop all packed weights, which the next calls make again; return their number of bytes."""
    with _lock:
        held: int = sum(out.nbytes for layouts in _packed.values() for _, out in layouts.values())
        _packed.clear()
    return held


def _fingerprint(weight: Tensor) -> Hashable:
    """Return a stamp of values, shape and strides; None for a tensor with gaps, which is packed in each call."""
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
        return None
    values = _native.fingerprint(address(weight), weight.numel(), torch.get_num_threads())
    return (values, weight.shape, weight.stride())


def _version(owner: Tensor, weight: Tensor, queue: tuple[int, int]) -> Hashable:
    """Return a stamp of the version, or None for a tensor made in inference mode, which has no version counter.

    It refers to the owner, since a new tensor may have the address and version of a dead one. All else
    comes from the alias, since another thread may have changed the owner.
    """
    if weight.is_inference():
        return None
    return (weight._version, weight.data_ptr(), weight.shape, weight.stride(), queue, WeakIdRef(owner))
