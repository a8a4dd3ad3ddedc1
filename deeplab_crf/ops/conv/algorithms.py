"""The choice of a convolution's algorithm: the user's, or else the cheapest by a cost model fitted to measurements.

- "torch": torch's own convolution, then the epilogue.
- "direct": products of pixels with taps, leaving out taps outside the map. Error 1e-6.
- "winograd": F(4x4, 3x3) and smaller tiles over the phases; 3x3 with stride 1. Error 1e-5.
- "shifted": products first, shifts afterwards, for sums with few filters. Error 1e-6.

Errors are relative to the largest output, in float32; docs/convolution.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from deeplab_crf import _native
from deeplab_crf.ops.conv.shapes import Shape

ALGORITHMS = ("torch", "direct", "winograd", "shifted")

# Filters up to which a sum of branches may be computed by "shifted".
MAX_SUM_FILTERS = 64


class ConvAlgorithm(NamedTuple):
    """The setting of `set_conv_algorithm`: its two arguments."""

    name: str = "auto"
    forbid: tuple[str, ...] = ()


class Policy:
    """Flags for the algorithms that a call may take; torch's is always allowed.

    Operators take them as ``int policy``, which torch.compile and torch.export can trace. They are
    plain integers, since an enum.IntFlag would combine and hash in Python, at a cost in every call.
    """

    DIRECT = 1
    WINOGRAD = 2
    SHIFTED = 4
    # Take the allowed algorithm wherever it can compute the convolution, at any cost.
    FORCED = 8
    # The neighbouring convolutions of the network run on our threads, not on torch's.
    IN_FUSED_NETWORK = 16
    AUTO = DIRECT | WINOGRAD | SHIFTED


_FLAGS = {"torch": 0, "direct": Policy.DIRECT, "winograd": Policy.WINOGRAD, "shifted": Policy.SHIFTED}

_setting = ConvAlgorithm()
_policy = Policy.AUTO


def set_conv_algorithm(name: str = "auto", *, forbid: Sequence[str] = ()) -> None:
    """Set how `dilated_conv2d` and `aspp_sum` compute from now on, in all threads.

    Args:
        name: "auto" takes the algorithm with the lowest cost. "torch", "direct", "winograd" and
            "shifted" take that one wherever it can compute the convolution, else torch's.
        forbid: Algorithms that "auto" must not take.

    Raises:
        ValueError: A name is unknown, or "torch" is forbidden, which must remain as the last resort.
    """
    global _setting, _policy
    _setting = _make_setting(name, forbid)
    _policy = make_policy(_setting)


def get_conv_algorithm() -> ConvAlgorithm:
    """Return the current setting, ``(name, forbid)``."""
    return _setting


@contextmanager
def conv_algorithm(name: str = "auto", *, forbid: Sequence[str] = ()) -> Iterator[None]:
    """Set the algorithm as `set_conv_algorithm` does, until the end of the ``with`` block."""
    global _setting, _policy
    before = _setting, _policy
    set_conv_algorithm(name, forbid=forbid)
    try:
        yield
    finally:
        _setting, _policy = before


def current_policy() -> int:
    """Return the policy of the current setting."""
    return _policy


def make_policy(setting: ConvAlgorithm) -> int:
    """Return the flags of `Policy` for a setting."""
    if setting.name != "auto":
        return Policy.FORCED | _FLAGS[setting.name]
    return Policy.AUTO & ~sum(_FLAGS[name] for name in setting.forbid)


def _make_setting(name: str, forbid: Sequence[str]) -> ConvAlgorithm:
    if name not in ("auto", *ALGORITHMS):
        raise ValueError(f"the algorithm must be one of auto, {', '.join(ALGORITHMS)}; got {name!r}")
    forbidden = [forbid] if isinstance(forbid, str) else list(forbid)
    for other in forbidden:
        if other not in ALGORITHMS[1:]:
            raise ValueError(f"forbid must name some of {', '.join(ALGORITHMS[1:])}; got {other!r}")
    if forbidden and name != "auto":
        raise ValueError(f'forbid goes with "auto"; got the algorithm {name!r}')
    return ConvAlgorithm(name, tuple(sorted(set(forbidden))))


# Costs are counted in products of one input channel with one filter at the speed of our kernels: 115
# per nanosecond with 512-bit vectors on one core of Zen 5. Torch's 3x3 takes as long per product. Its
# 1x1 uses MKL with one thread and fewer than 16 images, where it takes 2.1 to 3.4 times as long, and
# oneDNN otherwise, which alone took 0.4 to 1 times as long as ours. Between convolutions of ours with
# several threads, torch's pool and ours would alternate: whole networks are faster with our 1x1.
_TORCH_POINTWISE_MKL, _TORCH_POINTWISE, _TORCH_POINTWISE_IN_FUSED_NETWORK = 1.5, 0.8, 1.5
_ONEDNN_BATCH = 16
# Torch leaves out taps outside the map only with channels_last, and is then somewhat slower.
_TORCH_CLIPPED = 1.2
# Cost per element of the transformed input or output, with the transforms: 19 to 27 on Zen 4 and 20 on
# Zen 5, for 3x3 of 16 to 64 channels.
_WINOGRAD_ELEMENT = 25
# Cost per element of an input or result that is copied to the other layout.
_COPY = 60
# Cost per weight of its fingerprint, and of any call.
_FINGERPRINT = 30
_CALL = 1_000_000
# With fewer channels or filters than a few vectors, the registers of our kernels stay empty.
MIN_CHANNELS = 16


@lru_cache(maxsize=4096)
def choose_algorithm(shape: Shape, policy: int, channels_last: bool, threads: int) -> str:
    """Return "torch", "direct" or "winograd" for a convolution of float32 on the CPU.

    Args:
        shape: The convolution.
        policy: Flags of `Policy`.
        channels_last: Whether the input has the kernels' layout.
        threads: The number of torch's threads.
    """
    if shape.is_empty:
        return "torch"
    possible = ["direct", "winograd"] if shape.is_winograd else ["direct"]
    allowed = [name for name in possible if policy & _FLAGS[name]]
    if policy & Policy.FORCED:
        return allowed[0] if allowed else "torch"
    costs = _costs(shape, channels_last, _torch_pointwise(shape, policy, threads))
    return min(["torch", *allowed], key=lambda name: costs.get(name, float("inf")))


def _torch_pointwise(shape: Shape, policy: int, threads: int) -> float:
    """Return the cost per product of torch's 1x1."""
    if threads == 1:
        return _TORCH_POINTWISE_MKL if shape.batch < _ONEDNN_BATCH else _TORCH_POINTWISE
    return _TORCH_POINTWISE_IN_FUSED_NETWORK if policy & Policy.IN_FUSED_NETWORK else _TORCH_POINTWISE


def _costs(shape: Shape, channels_last: bool, torch_pointwise: float) -> dict[str, float]:
    """Return the costs of the algorithms that may be the fastest."""
    batch, channels, filters, rows, columns = shape
    taps = rows.kernel * columns.kernel
    inside = _native.direct_products(shape)
    pointwise = taps == 1
    torch_product = torch_pointwise if pointwise and rows.stride == columns.stride == 1 else 1.0
    costs = {"torch": inside * channels * filters * torch_product}
    if min(channels, filters) < MIN_CHANNELS:
        return costs
    ours = _CALL + _FINGERPRINT * taps * channels * filters
    if not channels_last:
        inputs, outputs = rows.size_in * columns.size_in, rows.size_out * columns.size_out
        ours += _COPY * batch * (channels * inputs + filters * outputs)
    clipped = inside < 0.6 * batch * rows.size_out * columns.size_out * taps
    if clipped:
        costs["torch"] *= _TORCH_CLIPPED
    if pointwise or clipped:
        costs["direct"] = inside * channels * filters + ours
    if shape.is_winograd:
        products = _native.winograd_products(shape)
        costs["winograd"] = products * (channels * filters + _WINOGRAD_ELEMENT * (channels + filters)) + ours
    return costs


@lru_cache(maxsize=1024)
def is_sum_shifted(shape: Shape, inside: int, padded: int, policy: int) -> bool:
    """Return whether `aspp_sum` on the CPU takes "shifted", or else computes branch by branch.

    Args:
        shape: One branch.
        inside: Products of all branches inside the map, per input channel and filter.
        padded: Products of "shifted", per input channel.
        policy: Flags of `Policy`.
    """
    if shape.is_empty or not policy & Policy.SHIFTED:
        return False
    if policy & Policy.FORCED:
        return True
    cheaper = padded * shape.channels + _CALL < 2 * inside * shape.channels * shape.filters
    return shape.filters <= MAX_SUM_FILTERS and cheaper
