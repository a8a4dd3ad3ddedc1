"""`fuse`: BatchNorm, bias, residual and ReLU become part of the convolutions of a network that is no longer trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from deeplab_crf.nn.fusion_report import FusionReport
from deeplab_crf.nn.graph_fusion import fuse_graph
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes the same in less time. ``fusion_report`` of the result says what was done (`FusionReport`).

    - BatchNorm behind a convolution is folded into its weight and bias, in float64.
    - Convolutions of 3x3 and stride 1, and of 1x1, with 16 channels or more, become `DilatedConv2d`, with the residual that is
      added and the ReLU that follows merged; what our kernels do not win stays torch's.
    - Sums of parallel dilated convolutions over one input (DeepLabV2's head) become one `ASPPSum`.
    - Weights are laid out channels_last, so that everything after the first convolution is.

    The network must be in eval mode (ValueError). It is followed with torch.fx: the copy keeps ``forward`` and the modules, not
    other methods. Where that fails (control flow that depends on values), children are followed one by one. Shared modules stay
    shared. The copy is for inference: gradients are right, but a folded BatchNorm no longer learns.
    """
    if model.training:
        raise ValueError(
            "fuse needs a network in eval mode, whose BatchNorms are constants; got one in training mode. Call .eval()"
        )
    report = FusionReport()
    fused: Any = _Walk(report).fuse(copy.deepcopy(model), "")
    fused.to(memory_format=torch.channels_last)
    fused.fusion_report = report
    result: nn.Module = fused
    return result


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DilatedConv2d | ASPPSum) or super().is_leaf_module(m, module_qualified_name)


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
        try:
            graph = _Tracer().trace(module)
        except Exception as error:  # whatever forward raises when it meets a stand-in for a tensor
            self.report.untraced[prefix.rstrip(".")] = f"{type(error).__name__}: {error}".splitlines()[0]
            return self._fuse_children(module, prefix)
        traced = fx.GraphModule(module, graph, type(module).__name__)
        fuse_graph(traced, prefix, self.report)
        return traced

    def _fuse_children(self, module: nn.Module, prefix: str) -> nn.Module:
        for name, child in list(module._modules.items()):
            if child is not None:
                setattr(module, name, self.fuse(child, f"{prefix}{name}."))
        return module


def _is_leaf(module: nn.Module) -> bool:
    return isinstance(module, DilatedConv2d | ASPPSum) or next(module.children(), None) is None
