"""`fuse`: fold BatchNorm, bias, residual and ReLU into the convolutions of a network for inference."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from deeplab_crf.nn.fused_forward import install_forward, is_fused
from deeplab_crf.nn.fusion_check import check_parts, compare
from deeplab_crf.nn.fusion_report import FusionReport
from deeplab_crf.nn.graph_fusion import fuse_graph
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d
from deeplab_crf.nn.reparametrized import is_hooked
from deeplab_crf.nn.tracing import (
    depends_on_layout,
    graph_depends_on_layout,
    runs_foreign_code,
    trace,
    works_in_any_layout,
)


def fuse(model: nn.Module, example: Any = None) -> nn.Module:
    """Make a copy of ``model`` that computes the same in less time.

    - BatchNorm after a convolution is folded into its weight and bias, in float64. Weight and
      spectral normalisation and pruning become plain weights.
    - Convolutions of 3x3 and stride 1, and of 1x1, with 16 channels or more, become `DilatedConv2d`,
      with the residual and the ReLU that follow merged. Other convolutions stay torch's.
    - Sums of parallel dilated convolutions over one input (DeepLabV2's head) become one `ASPPSum`.
    - Weights become channels_last, and with them everything after the first convolution.

    The network is traced with torch.fx. The copy of a network that can be traced keeps ``forward`` and
    the modules, but no other methods. Where tracing fails (control flow that depends on values), or
    torch.fx would leave something out (hooks, arguments that may be None), the copy is of the
    network's class, and its children are traced one by one.

    Such children keep their class, attributes and own children, so any code may use them as before.
    Only their ``forward`` is replaced, at the memory of a second set of the weights that BatchNorms are
    folded into. Shared modules stay shared. The copy is for inference: gradients are right, but a
    folded BatchNorm no longer learns.

    Args:
        model: The network, in eval mode.
        example: An input, or a tuple of the arguments of ``forward``. If given, the copy is compared
            with the network on it. Parts that fail, or differ by more than 1e-3 of the largest value,
            stay as they were.

    Returns:
        The copy. Its ``fusion_report`` (`FusionReport`) lists the changes and the difference on the example.

    Raises:
        ValueError: The network is in training mode.
    """
    if model.training:
        raise ValueError(
            "fuse needs a network in eval mode, whose BatchNorms are constants; got one in training mode. Call .eval()"
        )
    with unset_fake_temporarily():  # deepcopy fails under a fake tensor mode
        if example is not None:
            return _checked(model, example if isinstance(example, tuple) else (example,))
        fusion = _Fusion(model)
        if not fusion.report.layout:
            fusion.use_channels_last()
        return fusion.finish()


class _FusedNetwork(fx.GraphModule):
    """A network that was traced as a whole. Its copies keep the report, which fx.GraphModule drops."""

    fusion_report: FusionReport

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        result: Any = super().__deepcopy__(memo)
        result.fusion_report = copy.deepcopy(self.fusion_report, memo)
        return cast(fx.GraphModule, result)

    def __copy__(self) -> fx.GraphModule:
        result: Any = super().__copy__()
        result.fusion_report = self.fusion_report
        return cast(fx.GraphModule, result)


class _Part(NamedTuple):
    """A module with a `FusedForward`, the new modules that it calls, and its report."""

    module: nn.Module
    prefix: str
    added: list[tuple[nn.Module, str]]
    report: FusionReport


class _Fusion:
    """A copy of a network whose modules are fused, each visited once."""

    def __init__(self, model: nn.Module, untraced: str | None = None) -> None:
        """Fuse a copy of the model, part by part if there is a reason ``untraced`` not to trace it as a whole."""
        self.report = FusionReport()
        self.network: Any = _copied(model)
        self.visited: set[nn.Module] = set()
        self.parts: dict[str, _Part] = {}
        self.channels_last: list[Tensor] = []
        self.works_in_any_layout: dict[type[nn.Module], bool] = {}
        if untraced is None:
            self._visit(self.network, "")
        else:
            self._visit_children(self.network, "", untraced)

    def _visit(self, module: nn.Module, prefix: str) -> None:
        if module in self.visited:
            return
        self.visited.add(module)
        name, is_root = prefix.rstrip("."), module is self.network
        if _is_leaf(module):
            self._note_layout(module, name)
        elif type(module).forward is nn.Module.forward:  # ModuleList and ModuleDict
            self._visit_children(module, prefix)
        else:
            found = trace(module, is_read=not is_root)
            if isinstance(found, str):
                self._visit_children(module, prefix, found)
            elif is_root and not found.for_tensors_alone:
                self.network = self._rewrite(module, found.graph, prefix, self.report)[0]
            else:
                report = FusionReport()
                traced, added = self._rewrite(module, found.graph, prefix, report)
                self.parts[name] = _Part(module, prefix, install_forward(module, traced, added), report)

    def _visit_children(self, module: nn.Module, prefix: str, untraced: str | None = None) -> None:
        if untraced is not None:
            self.report.untraced[prefix.rstrip(".")] = untraced
            self._note_layout(module, prefix.rstrip("."))
        for name, child in list(module.named_children()):
            self._visit(child, f"{prefix}{name}.")

    def _rewrite(
        self, module: nn.Module, graph: fx.Graph, prefix: str, report: FusionReport
    ) -> tuple[fx.GraphModule, dict[str, str]]:
        traced = _FusedNetwork(module, graph, type(module).__name__)
        added = fuse_graph(traced, prefix, report)
        if graph_depends_on_layout(graph):
            self.report.layout.append(prefix.rstrip("."))
        for name, child in list(traced.named_modules()):
            if child is not traced and is_hooked(child):  # torch.fx calls it as a whole
                self._visit(child, f"{prefix}{name}.")
            elif child is not traced:
                self._note_layout(child, f"{prefix}{name}")
        return traced, added

    def _note_layout(self, module: nn.Module, name: str) -> None:
        if not runs_foreign_code(module) or not depends_on_layout(module):
            return
        kind = type(module)
        if kind not in self.works_in_any_layout:
            self.works_in_any_layout[kind] = (
                isinstance(module, nn.Conv2d) and not is_hooked(module) and works_in_any_layout(module)
            )
        if is_hooked(module) or not self.works_in_any_layout[kind]:
            self.report.layout.append(name)

    def use_channels_last(self) -> None:
        """Make the weights of torch's and our modules channels_last."""
        for module in self.network.modules():
            if type(module).__module__.startswith(("torch.", "deeplab_crf.")):
                for values in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    # Not Module.to, which refuses tensors of five axes.
                    if values.ndim == 4 and not values.is_contiguous(memory_format=torch.channels_last):
                        values.data = values.data.contiguous(memory_format=torch.channels_last)
                        self.channels_last.append(values)

    def restore_layout(self) -> None:
        """Undo `use_channels_last`."""
        for values in self.channels_last:
            values.data = values.data.contiguous()
        self.channels_last.clear()

    def unfuse(self, name: str, reason: str) -> None:
        """Restore the forward of a part's class, and fuse its children instead."""
        part = self.parts.pop(name)
        del part.module.__dict__["forward"]
        for owner, label in part.added:
            delattr(owner, label)
        self._visit_children(part.module, part.prefix, reason)

    def finish(self) -> nn.Module:
        """Return the network with its report."""
        for part in self.parts.values():
            self.report.add(part.report)
        self.network.fusion_report = self.report
        return cast(nn.Module, self.network)


def _checked(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """Fuse as much as gives the right results on the inputs."""
    fusion = _Fusion(model)
    fusion.use_channels_last()
    difference, reason = compare(model, fusion.network, inputs)
    if reason is not None:
        fusion = _Fusion(model, f"on the example: {reason}")
        while failed := check_parts(fusion.network, {name: part.module for name, part in fusion.parts.items()}, inputs):
            for name, failure in failed.items():
                fusion.unfuse(name, f"on the example: {failure}")
        fusion.use_channels_last()
        difference, reason = compare(model, fusion.network, inputs)
        if reason is not None:
            fusion.restore_layout()
            difference, reason = compare(model, fusion.network, inputs)
    if reason is not None:
        fusion.network, fusion.parts = _copied(model), {}
        fusion.report, difference = FusionReport(untraced={"": f"on the example: {reason}"}), 0.0
    fusion.report.difference = difference
    return fusion.finish()


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, including tensors that torch refuses to copy: those with a history and fake ones."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if isinstance(value, FakeTensor):
                same = value.detach().clone()
                memo[id(value)] = nn.Parameter(same, value.requires_grad) if isinstance(value, nn.Parameter) else same
    return copy.deepcopy(model, memo)


def _is_leaf(module: nn.Module) -> bool:
    whole = isinstance(module, DilatedConv2d | ASPPSum | nn.Conv2d | torch.jit.ScriptModule)
    return whole or is_fused(module) or next(module.children(), None) is None
