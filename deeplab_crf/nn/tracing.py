"""Tracing of a module's forward with torch.fx, with checks for hooks, types and changed state, which it misses."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from deeplab_crf.nn.graph_fusion import IN_PLACE_OPERATORS
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d
from deeplab_crf.nn.reparametrized import is_hooked

# Code that uses one of these names may depend on the memory layout of a tensor.
_LAYOUT_NAMES = frozenset({"view", "view_as", "as_strided", "is_contiguous", "data_ptr"})
# Modules of torch.nn, functions and methods that may return a tuple or a number.
_TUPLE_MODULES = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.AdaptiveLogSoftmaxWithLoss)
_TUPLE_FUNCTIONS = re.compile(
    r"get(attr|item|_device)|\w*(split|chunk|with_indices|_mean|unique\w*)|unbind|size|stride|dim|ndimension|numel|max|min|aminmax"
    r"|sort|topk|median|nanmedian|mode|kthvalue|cummax|cummin|svd|eig\w*|qr|lu\w*|slogdet|meshgrid|broadcast_tensors|nonzero|where"
    r"|frexp|item|tolist|type|storage|numpy|is_\w+|\w*attention_forward|lstm|gru|histogram\w*|geqrf|triangular_solve|lstsq"
)


class _Value(fx.Proxy):
    """A proxy for a tensor that corrects answers of `fx.Proxy`.

    ``a += b`` is recorded as a write to ``a``, which other names may share; fx.Proxy records ``a = a + b``.
    The type is Tensor where the value is surely one, or where `FusedForward` ensures that it is.
    """

    tracer: _Tracer

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if not _is_asked_by_forward():
            return _Value
        self.tracer.answer_type(self.node)
        return Tensor

    def __getattr__(self, k: str) -> Any:
        # Code uses hasattr to distinguish tensors from lists and dictionaries.
        if self.node.op == "placeholder" and not hasattr(Tensor, k):
            if _is_asked_by_forward():
                self.tracer.answer_type(self.node)
            raise AttributeError(f"a tensor has no attribute {k!r}")
        return super().__getattr__(k)


def _is_asked_by_forward() -> bool:
    """Return whether a network's code, not torch's, read the calling property, directly or by the standard library."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in ("abc", "dataclasses", "functools", "typing"):
        frame = frame.f_back
    is_torch = str(frame.f_globals.get("__name__", "")).startswith("torch.")
    # Code without these names did not ask itself: torch's compiled code did.
    return not is_torch and not {"isinstance", "hasattr", "getattr"}.isdisjoint(frame.f_code.co_names)


def _recorded(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _function in IN_PLACE_OPERATORS:
    setattr(_Value, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    types_asked = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, DilatedConv2d | ASPPSum | nn.Conv2d) or is_hooked(m)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def answer_type(self, node: fx.Node) -> None:
        """Check that the value is a tensor; raise TraceError if it may not be."""
        if not self._gives_tensor(node):
            raise fx.proxy.TraceError(f"forward asks for the type of {node.name}")

    def _gives_tensor(self, node: fx.Node) -> bool:
        if node.op == "placeholder":
            self.types_asked = True
        if node.op in ("placeholder", "get_attr"):
            return True
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            return (
                _is_from(module, "torch.nn.", "deeplab_crf.")
                and not is_hooked(module)
                and not isinstance(module, _TUPLE_MODULES)
            )
        function = getattr(node.target, "__name__", str(node.target))
        if _TUPLE_FUNCTIONS.fullmatch(function) is not None:
            return False
        # Sums of numbers are numbers.
        arithmetic = getattr(node.target, "__module__", "") == "_operator"
        return not arithmetic or any(map(self._gives_tensor, node.all_input_nodes))


class Trace(NamedTuple):
    """A graph, and whether arguments other than tensors might give another graph."""

    graph: fx.Graph
    for_tensors_alone: bool


def trace(module: nn.Module, is_read: bool) -> Trace | str:
    """Trace the module's forward and leave the module unchanged.

    Args:
        module: A module with a forward of its own.
        is_read: Whether other code may read attributes that its forward writes.

    Returns:
        The trace, or the reason why the module cannot be traced.
    """
    reason = _untraceable_reason(module)
    if reason is not None:
        return reason
    tracer, before = _Tracer(), _State(module)
    try:
        graph = tracer.trace(module)
    except Exception as error:  # forward may raise anything when given a proxy
        before.restore()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    changed = before.restore()
    if changed is not None and is_read:
        return f"forward changes {changed}"
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return Trace(graph, tracer.types_asked or len(placeholders) > 1)


def _have_same_values(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _untraceable_reason(module: nn.Module) -> str | None:
    """Return the part of the module that torch.fx would silently leave out, or None."""
    if is_hooked(module):
        return "has hooks"
    forward = inspect.signature(type(module).forward)
    optional = [name for name, parameter in forward.parameters.items() if parameter.default is None]
    return f"forward takes {', '.join(optional)}, which may be None" if optional else None


class _State:
    """The attributes of a module and its submodules, with the contents of lists, dictionaries and buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = [(part, dict(vars(part))) for part in module.modules()]
        self.contents = [
            (name, value, value.copy())
            for _, attributes in self.attributes
            for name, value in attributes.items()
            if isinstance(value, list | dict | set)
        ]
        self.buffers = [
            (name, buffer, None if buffer.is_inference() else buffer._version, buffer.clone())
            for name, buffer in module.named_buffers()
        ]

    def restore(self) -> str | None:
        """Undo all changes since; return the name of a changed attribute, or None."""
        changed = None
        for part, before in self.attributes:
            now = vars(part)
            names = [name for name in now.keys() | before.keys() if now.get(name) is not before.get(name)]
            if part is self.module:  # torch.fx stores new tensors of forward there
                names = [name for name in names if not name.startswith("_tensor_constant")]
            for name in names:
                changed = name
                now.pop(name, None)
                if name in before:
                    now[name] = before[name]
        for name, value, content in self.contents:
            if _contents(value) != _contents(content):
                changed = name
                value.clear()
                value.extend(content) if isinstance(value, list) else value.update(content)
        for name, buffer, version, values in self.buffers:
            # Tensors created in inference mode have no version counter.
            same = buffer._version == version if version is not None else _have_same_values(buffer, values)
            if not same:
                changed = name
                buffer.copy_(values)
        return changed


def _contents(container: list[Any] | dict[Any, Any] | set[Any]) -> Any:
    """Return the identities of the objects in a container."""
    if isinstance(container, dict):
        return {key: id(value) for key, value in container.items()}
    return type(container)(map(id, container))


def depends_on_layout(module: nn.Module) -> bool:
    """Return whether the module's own code uses an operation that depends on memory layout, such as Tensor.view."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(
        not _LAYOUT_NAMES.isdisjoint(names)
        for names in _names_used(module, [inspect.getattr_static(module, "forward"), *hooks])
    )


def _names_used(module: nn.Module, functions: list[Any]) -> Iterator[tuple[str, ...]]:
    """Yield the names in the code of functions, and of the functions, methods and properties that they may call.

    torch's own functions are left out.
    """
    seen: set[CodeType] = set()
    while functions:
        function = functions.pop()
        function = getattr(function, "fget", None) or getattr(function, "__func__", function)
        function = inspect.unwrap(function) if isinstance(function, FunctionType) else None
        if function is None or str(function.__module__).startswith("torch."):
            continue
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            if code in seen:
                continue
            seen.add(code)
            yield code.co_names
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            functions += [function.__globals__.get(name) for name in code.co_names]
            functions += [inspect.getattr_static(module, name, None) for name in code.co_names]


@torch.no_grad()
def works_in_any_layout(convolution: nn.Conv2d) -> bool:
    """Return whether a subclass of torch.nn.Conv2d computes the same for a channels_last input."""
    before = _State(convolution)
    size = [n + d * (k - 1) for n, d, k in zip((5, 6), convolution.dilation, convolution.kernel_size, strict=True)]
    x = torch.randn(2, convolution.in_channels, *size).to(convolution.weight)
    try:
        expected, result = convolution(x), convolution(x.contiguous(memory_format=torch.channels_last))
        return torch.allclose(expected, result, rtol=1e-3, atol=1e-3, equal_nan=True)
    except Exception:  # its forward may raise anything
        return False
    finally:
        before.restore()


def graph_depends_on_layout(graph: fx.Graph) -> bool:
    """Return whether a graph has operations that depend on memory layout."""
    return any(getattr(node.target, "__name__", node.target) in _LAYOUT_NAMES for node in graph.nodes)


def runs_foreign_code(module: nn.Module) -> bool:
    """Return whether calling the module runs code that is neither torch's nor ours."""
    return not _is_from(module, "torch.nn.modules.", "deeplab_crf.") or is_hooked(module)


def _is_from(module: nn.Module, *packages: str) -> bool:
    return type(module).__module__.startswith(packages)
