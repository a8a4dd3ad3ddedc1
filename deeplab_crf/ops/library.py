"""Registration of the operators ``torch.ops.deeplab_crf``.

Every operator has a kernel for the CPU and one for CUDA, which is registered if the CUDA backend was built.

Schemas use B images, N points, d features, C channels, L labels, M kernels and T iterations. Batches of
lattices are (rows, weights, structure) as in _native.pyi; lists have one entry per kernel. Norms without
elements stand for ones. Gradients that are not needed have no elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeplab_crf import _native

# The oldest version on which the tests pass (docs/development.md): torch.compile and torch.export of
# DenseCRF fail on 2.5.1, and plain inference on 2.4.1.
OLDEST_TORCH = (2, 6)

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
    raise ImportError(
        f"deeplab_crf needs torch {'.'.join(map(str, OLDEST_TORCH))} or later; found {torch.__version__}. Update it: "
        'pip install --upgrade "deeplab-crf[torch]". The NumPy API and the drop-in for pydensecrf need no torch'
    )

_untyped: Any = torch.library  # Library has no annotations
LIBRARY: Any = _untyped.Library("deeplab_crf", "DEF")

# The names of all operators, in the order of registration.
OPERATORS: list[str] = []

CUDA_BUILT: bool = _native.build_info()["cuda_built"]

# The CUDA kernels by operator, which tests also run on an emulation.
CUDA_KERNELS: dict[str, Callable[..., Any]] = {}


def register_operator(
    schema: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    cuda: Callable[..., Any] | None = None,
    elsewhere: Callable[..., Any] | None = None,
    autocast: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Define an operator and register its kernels, result shapes, derivative and behaviour under autocast.

    Args:
        schema: The name and the signature.
        cpu: The kernel on the CPU.
        fake: Returns results of the right shapes without values.
        backward: The derivative.
        setup_context: Saves the tensors for ``backward``.
        cuda: The kernel on CUDA; None for the one of ``elsewhere``.
        elsewhere: The kernel on other devices; None for an error that names the devices.
        autocast: Casts a tensor under autocast on a device type. None casts half precision to float32,
            since 11 bits cannot give the promised precision of results.
    """
    LIBRARY.define(schema)
    name = schema.partition("(")[0]
    OPERATORS.append(name)
    qualified = f"deeplab_crf::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        CUDA_KERNELS[name] = cuda
        if CUDA_BUILT:
            LIBRARY.impl(name, cuda, "CUDA")
    LIBRARY.impl(name, elsewhere or _no_backend(name), "CompositeExplicitAutograd")
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_ReverseModeLibrary())
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        LIBRARY.impl(name, _autocast_kernel(name, device_type, autocast or _full_precision), key)


class _ReverseModeLibrary:
    """The library for `register_autograd`, with a check for tangents.

    The autograd kernels support reverse mode only. They would drop tangents, giving a derivative of 0.
    """

    def impl(self, name: str, kernel: Callable[..., Any], key: str, **options: Any) -> None:
        def checked(keyset: Any, *arguments: Any, **named: Any) -> Any:
            if forward_ad._current_level >= 0 and any(map(has_tangent, _tensors((*arguments, *named.values())))):
                raise NotImplementedError(
                    f"{name} has no forward derivative; got a tensor with a tangent (torch.func.jvp, jacfwd or linearize, or "
                    'torch.autograd.forward_ad). Use a backward pass, or DenseCRF(method="exact"), which has one in its logits'
                )
            try:
                return kernel(keyset, *arguments, **named)
            except RuntimeError as error:
                if "functorch transforms" not in str(error):
                    raise
                raise NotImplementedError(
                    f"{name} has no derivative within torch.func (grad, vjp, jacrev, ...). Use torch.autograd.grad or a backward "
                    "pass, and a batch dimension in place of vmap"
                ) from error

        LIBRARY.impl(name, checked, key, **options)


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operator, and those in lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def has_tangent(tensor: Tensor) -> bool:
    """Return whether a forward derivative is being taken in ``tensor``."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def no_second_derivative(name: str) -> Callable[..., Any]:
    """Return the backward function of an operator without second derivative, which raises RuntimeError."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{name} has no second derivative; got a backward pass through it. Leave out create_graph=True, or detach "
            "what need not be differentiated twice (lattice_filter can be differentiated twice in its values)"
        )

    return backward


def _autocast_kernel(name: str, device_type: str, cast: Callable[[str, Tensor], Tensor]) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return getattr(torch.ops.deeplab_crf, name)(*[_cast(argument, device_type, cast) for argument in arguments])

    return kernel


def _cast(argument: Any, device_type: str, cast: Callable[[str, Tensor], Tensor]) -> Any:
    if isinstance(argument, list | tuple):
        return [_cast(item, device_type, cast) for item in argument]
    return cast(device_type, argument) if isinstance(argument, Tensor) else argument


def _full_precision(_device_type: str, tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _no_backend(name: str) -> Callable[..., Any]:
    """Return the kernel for devices without kernels, which raises NotImplementedError."""

    def kernel(*arguments: Any) -> None:
        given = list(_tensors(arguments))
        kinds = sorted({f"{tensor.device} ({tensor.layout})" for tensor in given})
        missing = any(tensor.is_cuda for tensor in given) and not CUDA_BUILT
        hint = (
            "Install deeplab-crf from source where nvcc (12.0 or later) is found, or move all"
            if missing
            else "Move all"
        )
        raise NotImplementedError(
            f"{name} has kernels for strided tensors on the CPU{' and CUDA' if CUDA_BUILT else ''}; got {', '.join(kinds)}. "
            f'{hint} of them to the CPU, or use method="exact", which runs on any device'
        )

    return kernel
