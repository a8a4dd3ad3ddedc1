"""Which algorithm a convolution takes: the user's word, and where there is none a cost model fitted to measurements.

"torch": torch's own convolution, then the epilogue. "direct": products of pixels with taps, taps outside the map left out (1e-6).
"winograd": F(4x4, 3x3) and smaller tiles over the phases (1e-5); 3x3, stride 1. "shifted": products first, shifts afterwards, for
sums with few filters. Errors are relative to the largest output, in float32; docs/convolution.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from deeplab_crf import _native
from deeplab_crf.ops.conv.shapes import Shape

ALGORITHMS = ("torch", "direct", "winograd", "shifted")

_policy = "auto"


def set_conv_algorithm(name: str = "auto", *, forbid: Sequence[str] = ()) -> None:
    """How `dilated_conv2d` and `aspp_sum` compute from now on, in all threads.

    name: "auto", by cost; or one of "torch", "direct", "winograd", "shifted": that one wherever it can, else torch. forbid:
    algorithms that "auto" is not to take. Raises ValueError for other names and for "torch" forbidden, which is what is left when
    nothing else is.
    """
    global _policy
    _policy = _make_policy(name, forbid)


def get_conv_algorithm() -> str:
    """What was set, as one word: "auto", a name, or "auto" followed by -name for each algorithm forbidden."""
    return _policy


@contextmanager
def conv_algorithm(name: str = "auto", *, forbid: Sequence[str] = ()) -> Iterator[None]:
    """`set_conv_algorithm` for a while."""
    global _policy
    before, _policy = _policy, _make_policy(name, forbid)
    try:
        yield
    finally:
        _policy = before


def _make_policy(name: str, forbid: Sequence[str]) -> str:
    if name not in ("auto", *ALGORITHMS):
        raise ValueError(f"the algorithm must be one of auto, {', '.join(ALGORITHMS)}; got {name!r}")
    forbidden = [forbid] if isinstance(forbid, str) else list(forbid)
    for other in forbidden:
        if other not in ALGORITHMS[1:]:
            raise ValueError(f"forbid must name some of {', '.join(ALGORITHMS[1:])}; got {other!r}")
    if forbidden and name != "auto":
        raise ValueError(f'forbid goes with "auto"; got the algorithm {name!r}')
    return "-".join([name, *sorted(set(forbidden))])


_AMONG_OURS = "among_ours"  # a word of "auto" policies that no user gives


def among_ours(policy: str) -> str:
    """``policy`` for a convolution between others that our kernels compute, as in a network that went through `fuse`."""
    return f"{policy}-{_AMONG_OURS}" if policy.startswith("auto") else policy


# Costs are in products of one input channel with one filter, at the speed of our kernels: 115 a nanosecond with 512-bit vectors on
# one core of Zen 5. Torch's 3x3 is as fast a product. Its 1x1 takes MKL with one thread and fewer than 16 images, 2.1 to 3.4 times
# as long there, and else oneDNN, which took 0.4 to 1 times as long as ours, alone. Among convolutions of ours, with several
# threads, torch's pool and ours would take turns: whole networks are faster with our 1x1 than with torch's.
_TORCH_POINTWISE_MKL, _TORCH_POINTWISE, _TORCH_POINTWISE_AMONG_OURS = 1.5, 0.8, 1.5
_BATCH_OF_ONEDNN = 16
# Where taps fall outside, torch leaves them out with channels_last only, and loses some of its speed.
_TORCH_CLIPPED = 1.2
# An element of the transformed input or output: written, read, and the transforms. 19 to 27 on Zen 4 and 20 on Zen 5, by 3x3 of 16
# to 64 channels.
_WINOGRAD_ELEMENT = 25
# An element of an input or result that is copied to the other layout.
_COPY = 60
# Looking whether a weight has changed, and what a call costs in any case.
_FINGERPRINT = 30
_CALL = 1_000_000
# With less depth or width than a few vectors our kernels' registers stay empty.
_FEW = 16


@lru_cache(maxsize=4096)
def choose_algorithm(shape: Shape, policy: str, channels_last: bool, threads: int) -> str:
    """One of "torch", "direct", "winograd". channels_last: whether tensors lie as the kernels want them. threads: torch's."""
    name, *words = policy.split("-")
    if min(shape[0], shape[3][1], shape[4][1]) == 0:
        return "torch"
    possible = _possible(shape)
    if name != "auto":
        return name if name in possible else "torch"
    costs = {
        algorithm: cost
        for algorithm, cost in _costs(shape, possible, channels_last, _torch_pointwise(shape, words, threads)).items()
        if algorithm not in words
    }
    return min(costs, key=lambda algorithm: costs[algorithm])


def _possible(shape: Shape) -> list[str]:
    """What can compute it at all, "shifted" apart."""
    _, _, _, rows, columns = shape
    winograd = all(axis[2] == 3 and axis[3] == 1 for axis in (rows, columns))
    return ["torch", "direct", "winograd"] if winograd else ["torch", "direct"]


def _torch_pointwise(shape: Shape, words: Sequence[str], threads: int) -> float:
    """What torch's 1x1 costs a product."""
    if threads == 1:
        return _TORCH_POINTWISE_MKL if shape[0] < _BATCH_OF_ONEDNN else _TORCH_POINTWISE
    return _TORCH_POINTWISE_AMONG_OURS if _AMONG_OURS in words else _TORCH_POINTWISE


def _costs(shape: Shape, possible: Sequence[str], channels_last: bool, torch_pointwise: float) -> dict[str, float]:
    """Of "auto"'s candidates."""
    batch, channels, filters, rows, columns = shape
    taps = rows[2] * columns[2]
    full = batch * rows[1] * columns[1] * taps
    inside = _native.direct_products(shape)
    pointwise = taps == 1
    of_torch = torch_pointwise if pointwise and rows[3] == columns[3] == 1 else 1.0
    costs = {"torch": inside * channels * filters * of_torch}
    if min(channels, filters) < _FEW:
        return costs
    ours = _CALL + _FINGERPRINT * taps * channels * filters
    if not channels_last:
        ours += _COPY * batch * (channels * rows[0] * columns[0] + filters * rows[1] * columns[1])
    clipped = inside < 0.6 * full
    if clipped:
        costs["torch"] *= _TORCH_CLIPPED
    if pointwise or clipped:
        costs["direct"] = inside * channels * filters + ours
    if "winograd" in possible:
        products = _native.winograd_products(shape)
        costs["winograd"] = products * (channels * filters + _WINOGRAD_ELEMENT * (channels + filters)) + ours
    return costs


# Filters up to which products first, shifts afterwards, is tried for a sum of branches.
_FEW_FILTERS = 64


@lru_cache(maxsize=1024)
def choose_sum(shape: Shape, inside: int, padded: int, policy: str) -> str:
    """For `aspp_sum`: "shifted", or "each": branch by branch. shape: of one branch; inside: products of all branches that touch
    pixels, an input channel and filter; padded: products of "shifted" an input channel."""
    name, *forbidden = policy.split("-")
    if min(shape[0], shape[3][1], shape[4][1]) == 0:
        return "each"
    if name != "auto":
        return "shifted" if name == "shifted" else "each"
    if "shifted" in forbidden or shape[2] > _FEW_FILTERS:
        return "each"
    return "shifted" if padded * shape[1] + _CALL < 2 * inside * shape[1] * shape[2] else "each"
