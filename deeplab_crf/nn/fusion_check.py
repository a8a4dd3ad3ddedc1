"""Comparison of a fused network with the plain one on an example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Tolerated difference relative to the largest value; one Winograd convolution differs by up to 1e-4.
_TOLERANCE = 1e-3


@torch.no_grad()
def compare(plain: nn.Module, fused: nn.Module, inputs: tuple[Any, ...]) -> tuple[float, str | None]:
    """Run both networks on copies of the inputs.

    Returns:
        The largest difference relative to the largest value, and the fault of the fused network or None.
    """
    expected = plain(*copy.deepcopy(inputs))
    return _compare_results(expected, lambda: fused(*copy.deepcopy(inputs)))


@torch.no_grad()
def check_parts(network: nn.Module, parts: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, str]:
    """Run the network with the plain forwards of its parts and compare each with the fused one.

    Args:
        network: Contains the parts.
        parts: Modules with a `FusedForward`, by name.
        inputs: The arguments of the network.

    Returns:
        The names of the parts that fail or differ, each with the reason.
    """
    failed: dict[str, str] = {}

    def checked(name: str, fused: Any) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            copies = copy.deepcopy((arguments, named))
            expected = fused.plain(*arguments, **named)
            _, reason = _compare_results(expected, lambda: fused(*copies[0], **copies[1]))
            if reason is not None:
                failed.setdefault(name, reason)
            return expected

        return forward

    forwards = {name: part.forward for name, part in parts.items()}
    for name, part in parts.items():
        part.__dict__["forward"] = checked(name, forwards[name])
    try:
        network(*copy.deepcopy(inputs))
    finally:
        for name, part in parts.items():
            part.__dict__["forward"] = forwards[name]
    return failed


def _compare_results(expected: Any, run: Callable[[], Any]) -> tuple[float, str | None]:
    try:
        result = run()
    except Exception as error:  # a network may raise anything
        return 0.0, f"{type(error).__name__}: {error}".splitlines()[0]
    a, b = list(_tensors(expected)), list(_tensors(result))
    if [(x.dtype, x.device, x.shape) for x in a] != [(x.dtype, x.device, x.shape) for x in b]:
        return 0.0, "the results have other types or shapes"
    differences = [(_difference(x, y), _tolerance(x)) for x, y in zip(a, b, strict=True) if x.numel()]
    largest = max((difference for difference, _ in differences), default=0.0)
    failed = any(difference > tolerance for difference, tolerance in differences)
    return largest, f"the results differ by {largest:.1e} of the largest value" if failed else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a result of any structure."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        yield from _tensors(vars(value))


def _tolerance(value: Tensor) -> float:
    return max(_TOLERANCE, 16 * torch.finfo(value.dtype).eps) if value.is_floating_point() else _TOLERANCE


def _difference(expected: Tensor, result: Tensor) -> float:
    """Return the largest difference over the largest finite value, or the share of integers that differ."""
    if not expected.is_floating_point():
        return (expected != result).double().mean().item()
    a, b = expected.double(), result.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0, (a - b).abs()).max()
    scale = torch.where(a.isfinite(), a.abs(), 0).max().clamp_min(torch.finfo(torch.float32).tiny)
    return (difference / scale).nan_to_num(float("inf")).item()
