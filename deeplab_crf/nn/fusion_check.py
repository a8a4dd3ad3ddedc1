"""Comparing a fused network with the plain one on an example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Of the largest value; a convolution by Winograd's algorithm differs by up to 1e-4.
_BOUND = 1e-3


@torch.no_grad()
def compare(plain: nn.Module, fused: nn.Module, inputs: tuple[Any, ...]) -> tuple[float, str | None]:
    """Runs both networks on copies of the inputs.

    Returns:
        The largest difference over the largest value, and what is wrong with the fused network, or None.
    """
    want = plain(*copy.deepcopy(inputs))
    return _outcome(want, lambda: fused(*copy.deepcopy(inputs)))


@torch.no_grad()
def check_parts(network: nn.Module, parts: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, str]:
    """Runs the network with the plain forwards of its parts, each of which is compared with the fused one on the way.

    Args:
        network: Contains the parts.
        parts: Modules with a `FusedForward`, by name.
        inputs: The arguments of the network.

    Returns:
        The names of the parts that fail or differ, with the reason.
    """
    failed: dict[str, str] = {}

    def checked(name: str, fused: Any) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            copies = copy.deepcopy((arguments, named))
            want = fused.plain(*arguments, **named)
            _, why = _outcome(want, lambda: fused(*copies[0], **copies[1]))
            if why is not None:
                failed.setdefault(name, why)
            return want

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


def _outcome(want: Any, run: Callable[[], Any]) -> tuple[float, str | None]:
    try:
        got = run()
    except Exception as error:  # whatever the network raises
        return 0.0, f"{type(error).__name__}: {error}".splitlines()[0]
    wanted, given = list(_tensors(want)), list(_tensors(got))
    if [_kind(value) for value in wanted] != [_kind(value) for value in given]:
        return 0.0, "the results have other types or shapes"
    differences = [(_difference(a, b), _bound(a)) for a, b in zip(wanted, given, strict=True) if a.numel()]
    largest = max((difference for difference, _ in differences), default=0.0)
    far = any(difference > bound for difference, bound in differences)
    return largest, f"the results differ by {largest:.1e} of the largest value" if far else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a result, whatever it is made of."""
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


def _kind(value: Tensor) -> tuple[Any, ...]:
    return (value.dtype, value.device, value.shape)


def _bound(value: Tensor) -> float:
    return max(_BOUND, 16 * torch.finfo(value.dtype).eps) if value.is_floating_point() else _BOUND


def _difference(want: Tensor, got: Tensor) -> float:
    """Returns the largest difference over the largest finite value; for whole numbers and Booleans the share that differs."""
    if not want.is_floating_point():
        return (want != got).double().mean().item()
    a, b = want.double(), got.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0, (a - b).abs()).max()
    scale = torch.where(a.isfinite(), a.abs(), 0).max().clamp_min(torch.finfo(torch.float32).tiny)
    return (difference / scale).nan_to_num(float("inf")).item()
