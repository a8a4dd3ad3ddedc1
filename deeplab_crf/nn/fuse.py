"""`fuse`: BatchNorm, bias, residual and ReLU become part of the convolutions of a network that is no longer trained."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from deeplab_crf.nn.fusion_report import FusionReport
from deeplab_crf.nn.graph_fusion import IN_PLACE_OPERATORS, fuse_graph, is_hooked
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes the same in less time. ``fusion_report`` of the result says what was done (`FusionReport`).

    - BatchNorm behind a convolution is folded into its weight and bias, in float64.
    - Convolutions of 3x3 and stride 1, and of 1x1, with 16 channels or more, become `DilatedConv2d`, with the residual that is
      added and the ReLU that follows merged; what our kernels do not win stays torch's.
    - Sums of parallel dilated convolutions over one input (DeepLabV2's head) become one `ASPPSum`.
    - Weights are laid out channels_last, so that everything after the first convolution is.

    The network must be in eval mode (ValueError). It is followed with torch.fx: the copy keeps ``forward`` and the modules, not
    other methods. Where that fails (control flow that depends on values), and where it would leave something out (hooks, arguments
    that may be None), children are followed one by one; such a forward must do nothing with its children but call them. Shared
    modules stay shared. The copy is for inference: gradients are right, but a folded BatchNorm no longer learns.
    """
    if model.training:
        raise ValueError(
            "fuse needs a network in eval mode, whose BatchNorms are constants; got one in training mode. Call .eval()"
        )
    report = FusionReport()
    fused: Any = _Walk(report).fuse(copy.deepcopy(model), "")
    for values in (*fused.parameters(), *fused.buffers()):
        if values.ndim == 4:  # Module.to would refuse five axes
            values.data = values.data.contiguous(memory_format=torch.channels_last)
    fused.fusion_report = report
    result: nn.Module = fused
    return result


class _Value(fx.Proxy):
    """To which ``a += b`` is a write to ``a``, which other names may have too; fx.Proxy takes it for ``a = a + b``."""


def _recorded(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _function in IN_PLACE_OPERATORS:
    setattr(_Value, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, DilatedConv2d | ASPPSum | nn.Conv2d) or is_hooked(m)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


class _Walk:
    """Through the modules of a network, each once."""

    def __init__(self, report: FusionReport) -> None:
        self.report = report
        self.done: dict[nn.Module, nn.Module] = {}

    def fuse(self, module: nn.Module, prefix: str) -> nn.Module:
        if module not in self.done:
            self.done[module] = self._fuse(module, prefix)
        return self.done[module]

    def _fuse(self, module: nn.Module, prefix: str) -> nn.Module:
        if _is_leaf(module):
            return module
        if isinstance(module, nn.ModuleList | nn.ModuleDict):  # they have no forward
            return self._fuse_children(module, prefix)
        reason = _why_not_traced(module)
        if reason is not None:
            self.report.untraced[prefix.rstrip(".")] = reason
            return self._fuse_children(module, prefix)
        try:
            graph = _Tracer().trace(module)
        except Exception as error:  # whatever forward raises when it meets a stand-in for a tensor
            self.report.untraced[prefix.rstrip(".")] = f"{type(error).__name__}: {error}".splitlines()[0]
            return self._fuse_children(module, prefix)
        traced = fx.GraphModule(module, graph, type(module).__name__)
        fuse_graph(traced, prefix, self.report)
        for name, child in list(traced.named_modules()):
            if child is not traced and is_hooked(child):  # called as a whole, and stays the same object
                self.fuse(child, f"{prefix}{name}.")
        return traced

    def _fuse_children(self, module: nn.Module, prefix: str) -> nn.Module:
        for name, child in list(module._modules.items()):
            if child is not None:
                setattr(module, name, self.fuse(child, f"{prefix}{name}."))
        return module


def _why_not_traced(module: nn.Module) -> str | None:
    """What torch.fx would leave out without a word, or None."""
    if is_hooked(module):
        return "has hooks"
    forward = inspect.signature(type(module).forward)
    optional = [name for name, parameter in forward.parameters.items() if parameter.default is None]
    return f"forward takes {', '.join(optional)}, which may be None" if optional else None


def _is_leaf(module: nn.Module) -> bool:
    whole = isinstance(module, DilatedConv2d | ASPPSum | torch.jit.ScriptModule)
    return whole or next(module.children(), None) is None
