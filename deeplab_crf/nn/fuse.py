"""`fuse`: BatchNorm, bias, residual and ReLU become part of the convolutions of a network that is no longer trained."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from deeplab_crf.nn.fused_forward import give_forward, is_fused
from deeplab_crf.nn.fusion_check import check_parts, compare
from deeplab_crf.nn.fusion_report import FusionReport
from deeplab_crf.nn.graph_fusion import fuse_graph
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d
from deeplab_crf.nn.reparametrized import is_hooked
from deeplab_crf.nn.tracing import asks_for_layout, has_own_code, keeps_layout, trace, works_in_any_layout


def fuse(model: nn.Module, example: Any = None) -> nn.Module:
    """Makes a copy of ``model`` that computes the same in less time.

    - BatchNorm behind a convolution is folded into its weight and bias, in float64. Weight and spectral normalisation and pruning
      become plain weights.
    - Convolutions of 3x3 and stride 1, and of 1x1, with 16 channels or more, become `DilatedConv2d`, with the residual that is
      added and the ReLU that follows merged; what our kernels do not win stays torch's.
    - Sums of parallel dilated convolutions over one input (DeepLabV2's head) become one `ASPPSum`.
    - Weights are laid out channels_last, so that everything after the first convolution is.

    The network is followed with torch.fx; the copy of one that can be followed keeps ``forward`` and
    the modules, not other methods. Where it cannot (control flow that depends on values), and where
    torch.fx would leave something out (hooks, arguments that may be None), the copy is of the network's
    class, and its children are followed one by one. These keep their class, their attributes and their
    own children, so that a forward may do with them what it likes; only their ``forward`` is another,
    for the memory of a second set of the weights that BatchNorms are folded into. Shared modules stay
    shared. The copy is for inference: gradients are right, but a folded BatchNorm no longer learns.

    Args:
        model: The network, in eval mode.
        example: An input, or a tuple of the arguments of ``forward``. If given, the copy is compared with the network on it. What
            fails, or gives a result that differs by more than 1e-3 of the largest value, is left as it was, part by part.

    Returns:
        The copy. Its ``fusion_report`` says what was done, and how large the difference on the example is (`FusionReport`).

    Raises:
        ValueError: The network is in training mode.
    """
    if model.training:
        raise ValueError(
            "fuse needs a network in eval mode, whose BatchNorms are constants; got one in training mode. Call .eval()"
        )
    with unset_fake_temporarily():  # copying would fail under the mode
        if example is not None:
            return _checked(model, example if isinstance(example, tuple) else (example,))
        fusion = _Fusion(model)
        if not fusion.report.layout:
            fusion.lay_out()
        return fusion.finish()


class _FusedNetwork(fx.GraphModule):
    """A network that was followed as a whole. Copies keep the report, which fx.GraphModule would drop."""

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
    """A module with a `FusedForward`: the modules that it calls beside its own, and what was done."""

    module: nn.Module
    prefix: str
    added: list[tuple[nn.Module, str]]
    report: FusionReport


class _Fusion:
    """A copy of a network, and its modules, each visited once."""

    def __init__(self, model: nn.Module, why_in_parts: str | None = None) -> None:
        """why_in_parts: The reason why the network is not followed as a whole, if it is not."""
        self.report = FusionReport()
        self.network: Any = _copied(model)
        self.visited: set[nn.Module] = set()
        self.parts: dict[str, _Part] = {}
        self.laid_out: list[Tensor] = []
        self.works_in_any_layout: dict[type[nn.Module], bool] = {}
        if why_in_parts is None:
            self._visit(self.network, "")
        else:
            self._visit_children(self.network, "", why_in_parts)

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
                self.parts[name] = _Part(module, prefix, give_forward(module, traced, added), report)

    def _visit_children(self, module: nn.Module, prefix: str, why: str | None = None) -> None:
        if why is not None:
            self.report.untraced[prefix.rstrip(".")] = why
            self._note_layout(module, prefix.rstrip("."))
        for name, child in list(module.named_children()):
            self._visit(child, f"{prefix}{name}.")

    def _rewrite(
        self, module: nn.Module, graph: fx.Graph, prefix: str, report: FusionReport
    ) -> tuple[fx.GraphModule, dict[str, str]]:
        traced = _FusedNetwork(module, graph, type(module).__name__)
        added = fuse_graph(traced, prefix, report)
        if keeps_layout(graph):
            self.report.layout.append(prefix.rstrip("."))
        for name, child in list(traced.named_modules()):
            if child is not traced and is_hooked(child):  # called as a whole
                self._visit(child, f"{prefix}{name}.")
            elif child is not traced:
                self._note_layout(child, f"{prefix}{name}")
        return traced, added

    def _note_layout(self, module: nn.Module, name: str) -> None:
        if not has_own_code(module) or not asks_for_layout(module):
            return
        kind = type(module)
        if kind not in self.works_in_any_layout:
            self.works_in_any_layout[kind] = (
                isinstance(module, nn.Conv2d) and not is_hooked(module) and works_in_any_layout(module)
            )
        if is_hooked(module) or not self.works_in_any_layout[kind]:
            self.report.layout.append(name)

    def lay_out(self) -> None:
        """Makes weights channels_last, those of torch's and our modules."""
        for module in self.network.modules():
            if type(module).__module__.startswith(("torch.", "deeplab_crf.")):
                for values in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    # Module.to would refuse five axes.
                    if values.ndim == 4 and not values.is_contiguous(memory_format=torch.channels_last):
                        values.data = values.data.contiguous(memory_format=torch.channels_last)
                        self.laid_out.append(values)

    def undo_layout(self) -> None:
        for values in self.laid_out:
            values.data = values.data.contiguous()
        self.laid_out.clear()

    def leave(self, name: str, why: str) -> None:
        """Gives a part the forward of its class back, and goes on with its children."""
        part = self.parts.pop(name)
        del part.module.__dict__["forward"]
        for owner, label in part.added:
            delattr(owner, label)
        self._visit_children(part.module, part.prefix, why)

    def finish(self) -> nn.Module:
        for part in self.parts.values():
            self.report.add(part.report)
        self.network.fusion_report = self.report
        return cast(nn.Module, self.network)


def _checked(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """`fuse` with an example."""
    fusion = _Fusion(model)
    fusion.lay_out()
    difference, why = compare(model, fusion.network, inputs)
    if why is not None:
        fusion = _Fusion(model, f"on the example: {why}")
        while failed := check_parts(fusion.network, {name: part.module for name, part in fusion.parts.items()}, inputs):
            for name, reason in failed.items():
                fusion.leave(name, f"on the example: {reason}")
        fusion.lay_out()
        difference, why = compare(model, fusion.network, inputs)
        if why is not None:
            fusion.undo_layout()
            difference, why = compare(model, fusion.network, inputs)
    if why is not None:
        fusion.network, fusion.parts = _copied(model), {}
        fusion.report, difference = FusionReport(untraced={"": f"on the example: {why}"}), 0.0
    fusion.report.difference = difference
    return fusion.finish()


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of what torch does not copy: tensors with a history, which hooks compute anew at each call, and fake
    tensors."""
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
