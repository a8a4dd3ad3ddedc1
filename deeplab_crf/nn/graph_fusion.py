"""Rewriting of one traced graph for `fuse`: convolution, BatchNorm, sum, ReLU."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from deeplab_crf.nn.fusion_report import FusionReport
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d
from deeplab_crf.nn.reparametrized import is_hooked, plain_convolution
from deeplab_crf.ops.conv.algorithms import MAX_SUM_FILTERS, MIN_CHANNELS, Policy
from deeplab_crf.ops.conv.packed_weights import flush_denormals
from deeplab_crf.ops.conv.shapes import make_geometry, output_size, result_dtype

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_ADDING_METHODS = ("add", "add_")
_RELUS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)
_RELU_METHODS = ("relu", "relu_")
# Operators such as ``a += b``, which write to a tensor.
IN_PLACE_OPERATORS = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor,
)  # fmt: skip
_RESHAPES = {"view": "reshape", "view_as": "reshape_as"}


class _Merged(DilatedConv2d):
    """A convolution in a fused network, whose residual may be anything that the original addition allowed.

    It may need broadcasting or conversion, or be a number. With ``in_place``, the addition kept the
    dtype and size of the convolution.
    """

    in_place = False

    def _policy(self) -> int:
        return super()._policy() | Policy.IN_FUSED_NETWORK

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None or (isinstance(residual, Tensor) and self._fits(x, residual)):
            return super().forward(x, residual)
        y = self._convolve(x, None, None)
        y = y.add_(residual) if self.in_place else y + residual
        return y.relu() if self.activation == "relu" else y

    def _fits(self, x: Tensor, residual: Tensor) -> bool:
        filters, _, *kernel = self.weight.shape
        size = output_size(x.shape[-2:], kernel, make_geometry(self.stride, self.padding, self.dilation))
        return residual.dtype == result_dtype(x) and tuple(residual.shape) == (*x.shape[:-3], filters, *size)


def fuse_graph(traced: fx.GraphModule, prefix: str, report: FusionReport) -> dict[str, str]:
    """Rewrite a graph and recompile it.

    Args:
        traced: The traced network.
        prefix: The beginning of the names in the report.
        report: Receives the changes.

    Returns:
        The names of the new modules, each with that of the (first) convolution that it replaces.
    """
    fusion = _Fusion(traced, prefix, report)
    fusion.sum_branches()
    fusion.merge_convolutions()
    fusion.allow_any_layout()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return fusion.added


class _Fusion:
    def __init__(self, traced: fx.GraphModule, prefix: str, report: FusionReport) -> None:
        self.traced, self.prefix, self.report = traced, prefix, report
        modules = traced.named_modules(remove_duplicate=False)
        self.modules = {name: plain_convolution(module) or module for name, module in modules}
        self.added: dict[str, str] = {}
        # Caches, so that a module that is called twice becomes one module again.
        self.folded: dict[tuple[str, str | None], tuple[nn.Parameter, nn.Parameter | None]] = {}
        self.created: dict[tuple[Any, ...], str] = {}

    def module(self, node: Any, kind: type | tuple[type, ...]) -> Any:
        """Return the module that the node calls if it is of that kind, else None."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        found = self.modules.get(str(node.target))
        return found if isinstance(found, kind) else None

    def plain_module(self, node: Any, *types: type) -> Any:
        """Return the module if its type is one of these and it has no hooks: subclasses may compute something else."""
        found = self.module(node, nn.Module)
        plain = type(found) in types and not is_hooked(found) and len(node.args) == 1 and not node.kwargs
        return found if plain else None

    # Sums of branches.

    def sum_branches(self) -> None:
        for node in list(self.traced.graph.nodes):
            if _is_addition(node) and not any(_is_addition(user) for user in node.users):
                leaves = _summands(node)
                if len(leaves) > 1 and self._are_branches(leaves, node):
                    self._replace_sum(node, leaves)

    def _are_branches(self, leaves: list[Any], total: fx.Node) -> bool:
        convolutions = [self.plain_module(leaf, nn.Conv2d) for leaf in leaves]
        if any(conv is None for conv in convolutions):
            return False
        first = convolutions[0]
        inputs = {leaf.args[0] for leaf in leaves}
        earliest = next(node for node in self.traced.graph.nodes if node in leaves)
        return (
            len(inputs) == 1
            and self._can_move(earliest.args[0], earliest, total)
            and all(
                _is_branch(conv)
                and conv.out_channels == first.out_channels <= MAX_SUM_FILTERS
                and (conv.bias is None) == (first.bias is None)
                for conv in convolutions
            )
        )

    def _replace_sum(self, node: fx.Node, leaves: list[fx.Node]) -> None:
        names = [str(leaf.target) for leaf in leaves]
        convolutions = [self.modules[name] for name in names]
        first = convolutions[0]
        summed = ASPPSum(1, 1, [conv.dilation[0] for conv in convolutions], bias=False)
        summed.weights = nn.ParameterList([conv.weight for conv in convolutions])
        summed.biases = nn.ParameterList([conv.bias for conv in convolutions if conv.bias is not None])
        name = self._add_module(names, summed.train(first.training))
        self._replace([*leaves, *_additions(node)], name, (leaves[0].args[0],))
        self.report.sums.append([self.prefix + name for name in names])

    # One convolution and what follows it.

    def merge_convolutions(self) -> None:
        for node in list(self.traced.graph.nodes):
            conv = self.plain_module(node, nn.Conv2d, DilatedConv2d)
            if conv is not None and getattr(conv, "activation", None) is None:
                self._merge(node, conv)
            other = self.module(node, nn.Conv2d) if conv is None else None
            if other is not None:
                reason = "hooks" if is_hooked(other) else type(other).__name__
                self.report.left[self.prefix + str(node.target)] = reason if node.args else "called with keywords"

    def _merge(self, node: fx.Node, conv: Any) -> None:
        name = self.prefix + str(node.target)
        chain = [node]
        norm = self._following_norm(node)
        if norm is not None:
            chain.append(norm)
            self.report.folded[name] = self.prefix + str(norm.target)
        reason = _reason_left(conv)
        if reason is not None:
            self.report.left[name] = reason
            if norm is not None:
                self._replace(chain, self._folded_convolution(node, norm), node.args)
            return
        residual = self._following_sum(chain)
        in_place = residual is not None and self._writes(chain[-1])
        relu = self._following_relu(chain, residual)
        module = self._merged_convolution(node, norm, "relu" if relu else None, in_place)
        self._replace(chain, module, (node.args[0], residual) if residual is not None else (node.args[0],))
        parts = {"bias": self.modules[module].bias is not None, "residual": residual is not None, "relu": relu}
        self.report.replaced[name] = [part for part, merged in parts.items() if merged]

    def _following_norm(self, node: fx.Node) -> fx.Node | None:
        user = _only_user(node)
        norm = self.plain_module(user, nn.BatchNorm2d)
        constant = norm is not None and not norm.training and norm.running_mean is not None
        return user if user is not None and constant and self._can_move(node.args[0], node, user) else None

    def _following_sum(self, chain: list[fx.Node]) -> fx.Node | None:
        """Append a following addition of two tensors to the chain and return the other tensor, or None."""
        user = _only_user(chain[-1])
        if user is None or not _is_addition(user) or not self._can_move(chain[0].args[0], chain[0], user):
            return None
        others = [argument for argument in user.args if argument is not chain[-1]]
        if self._writes(user) and user.args[0] is not chain[-1]:
            return None  # the addition changes the other tensor, which may be used again
        if len(others) != 1 or not isinstance(others[0], fx.Node) or not _is_tensor(others[0], self):
            return None
        chain.append(user)
        return others[0]

    def _following_relu(self, chain: list[fx.Node], residual: fx.Node | None) -> bool:
        user = _only_user(chain[-1])
        if user is None or not self._is_relu(user) or not self._can_move(chain[0].args[0], chain[0], user):
            return False
        if residual is not None and not self._can_move(residual, chain[-1], user):
            return False
        chain.append(user)
        return True

    def _is_relu(self, node: fx.Node) -> bool:
        return (
            self.plain_module(node, nn.ReLU) is not None
            or (node.op == "call_function" and node.target in _RELUS)
            or (node.op == "call_method" and node.target in _RELU_METHODS)
        )

    def _can_move(self, read: Any, node: fx.Node, to: fx.Node) -> bool:
        """Return whether ``to`` may read ``read`` instead of ``node``: no node between them writes to it."""
        memory = self._memory(read)
        between = node.next
        while between is not to:
            if any(memory & self._memory(written) for written in self._written(between)):
                return False
            between = between.next
        return True

    def _memory(self, node: fx.Node) -> set[fx.Node | None]:
        """Return the nodes whose values may share memory, as views do; None stands for inputs of the graph."""
        memory: set[fx.Node | None] = set()
        pending = [node]
        while pending:
            current = pending.pop()
            if current not in memory and not self._is_fresh(current):
                pending += current.all_input_nodes
            memory |= {current} if current.all_input_nodes else {current, None}
        return memory

    def _is_fresh(self, node: fx.Node) -> bool:
        """Return whether the value surely has memory of its own. Dropout in eval mode, for one, returns its input."""
        module = self.module(node, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, DilatedConv2d, ASPPSum))
        if module is not None:
            return not is_hooked(module) and type(module).__module__.startswith(("torch.nn.", "deeplab_crf."))
        return _is_addition(node) and not self._writes(node)

    def _written(self, node: fx.Node) -> list[fx.Node]:
        if not self._writes(node):
            return []
        first = node.args[0] if node.args and "out" not in node.kwargs and node.op != "call_module" else None
        return [first] if isinstance(first, fx.Node) else node.all_input_nodes

    def _writes(self, node: fx.Node) -> bool:
        module = self.module(node, nn.Module)
        if module is not None:  # a hook or an inner module may write to anything
            return bool(getattr(module, "inplace", False)) or is_hooked(module) or any(True for _ in module.children())
        named = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        in_place = node.target in IN_PLACE_OPERATORS or (named.endswith("_") and not named.endswith("__"))
        return in_place or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None

    # Views.

    def allow_any_layout(self) -> None:
        """Replace view by reshape, which copies where channels_last allows no view.

        Values that are written to afterwards keep the view, since a copy would miss the write.
        """
        written: set[fx.Node | None] = set()
        for node in reversed(self.traced.graph.nodes):
            is_view = node.op == "call_method" and node.target in _RESHAPES and not _is_of_type(node)
            if is_view and not self._memory(node) & written:
                node.target = _RESHAPES[str(node.target)]
            written = written.union(*map(self._memory, self._written(node)))

    # Modules.

    def _parameters(self, node: fx.Node, norm: fx.Node | None) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return weight and bias with the BatchNorm folded in, the same objects for the same modules."""
        key = (str(node.target), None if norm is None else str(norm.target))
        if key not in self.folded:
            conv: Any = self.modules[key[0]]
            folded = (conv.weight, conv.bias) if key[1] is None else _fold(conv, self.modules[key[1]])
            self.folded[key] = folded
        return self.folded[key]

    def _merged_convolution(self, node: fx.Node, norm: fx.Node | None, activation: str | None, in_place: bool) -> str:
        key = (str(node.target), None if norm is None else str(norm.target), activation, in_place)
        if key not in self.created:
            conv: Any = self.modules[str(node.target)]
            module = _Merged(
                1, 1, 1, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, activation=activation
            )
            module.weight, module.bias = self._parameters(node, norm)
            module.in_place = in_place
            self.created[key] = self._add_module([str(node.target)], module.train(conv.training))
        return self.created[key]

    def _folded_convolution(self, node: fx.Node, norm: fx.Node) -> str:
        key = (str(node.target), str(norm.target))
        if key not in self.created:
            # A copy with other parameters, which keeps groups, padding and subclass.
            conv: Any = self.modules[key[0]]
            module = conv.__class__.__new__(conv.__class__)
            module.__dict__ = {**conv.__dict__, "_parameters": dict(conv._parameters), "_modules": {}}
            module.weight, module.bias = self._parameters(node, norm)
            self.created[key] = self._add_module([key[0]], module)
        return self.created[key]

    def _add_module(self, names: list[str], module: nn.Module) -> str:
        # Add it beside the old modules, which other callers may use.
        flat = f"fused_{'_'.join(names).replace('.', '_')}"
        count = 0
        while (unique := f"{flat}_{count}" if count else flat) in self.modules:
            count += 1
        self.traced.add_module(unique, module)
        self.modules[unique] = module
        self.added[unique] = names[0]
        return unique

    def _replace(self, chain: list[fx.Node], module: str, arguments: tuple[Any, ...]) -> None:
        """Replace the chain by a call of the module."""
        last = chain[-1]
        with self.traced.graph.inserting_before(last):
            call = self.traced.graph.call_module(module, arguments)
        last.replace_all_uses_with(call)
        for node in reversed(list(dict.fromkeys(chain))):
            self.traced.graph.erase_node(node)


def _is_of_type(view: fx.Node) -> bool:
    """Return whether Tensor.view is given a dtype instead of a size."""
    return any(isinstance(argument, torch.dtype) for argument in (*view.args, *view.kwargs.values()))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_addition(node: fx.Node) -> bool:
    adds = (node.op == "call_function" and node.target in _ADDITIONS) or (
        node.op == "call_method" and node.target in _ADDING_METHODS
    )
    return adds and len(node.args) == 2 and not node.kwargs  # alpha and out change its meaning


def _is_tensor(node: fx.Node, fusion: _Fusion) -> bool:
    """Return whether the value is surely an activation: of a module, placeholder, addition or ReLU."""
    return node.op in ("call_module", "placeholder") or _is_addition(node) or fusion._is_relu(node)


def _summands(node: Any) -> list[Any]:
    """Return the leaves of a tree of additions in order, without the zero that Python's sum starts with."""
    if isinstance(node, fx.Node) and _is_addition(node):
        leaves: list[Any] = []
        for argument in node.args:
            used_again = isinstance(argument, fx.Node) and len(argument.users) > 1
            leaves += [None] if used_again else [] if _is_zero(argument) else _summands(argument)
        return leaves
    return [node] if isinstance(node, fx.Node) and len(node.users) == 1 else [None]


def _additions(node: fx.Node) -> list[fx.Node]:
    """Return the additions of the same tree, the root last."""
    inner = [argument for argument in node.args if isinstance(argument, fx.Node) and _is_addition(argument)]
    return [*[addition for argument in inner for addition in _additions(argument)], node]


def _is_zero(argument: Any) -> bool:
    return isinstance(argument, int | float) and argument == 0


def _is_branch(conv: Any) -> bool:
    padding = tuple(rate * (size - 1) // 2 for rate, size in zip(conv.dilation, conv.kernel_size, strict=True))
    return bool(
        conv.groups == 1
        and conv.padding_mode == "zeros"
        and tuple(conv.stride) == (1, 1)
        and all(size % 2 == 1 for size in conv.kernel_size)
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding == padding
    )


def _reason_left(conv: Any) -> str | None:
    """Return the reason why a convolution stays torch's, or None."""
    filters, channels, *kernel = conv.weight.shape
    if getattr(conv, "groups", 1) != 1:
        return f"groups={conv.groups}"
    if getattr(conv, "padding_mode", "zeros") != "zeros" or isinstance(conv.padding, str):
        return f"padding {conv.padding!r}, {getattr(conv, 'padding_mode', 'zeros')}"
    if conv.weight.dtype != torch.float32:
        return f"{conv.weight.dtype}"
    if min(filters, channels) < MIN_CHANNELS:
        return f"{channels} -> {filters} channels"
    if kernel != [1, 1] and (kernel != [3, 3] or tuple(conv.stride) != (1, 1)):
        return f"kernel {kernel[0]}x{kernel[1]}, stride {conv.stride[0]}"
    return None


def _fold(conv: Any, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Fold a BatchNorm, in float64.

    weight' = weight gamma / sqrt(var + eps), bias' = (bias - mean) gamma / sqrt(var + eps) + beta.
    """
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = (0 if conv.bias is None else conv.bias.double()) - norm.running_mean.double()
        bias = bias * scale + (0 if norm.bias is None else norm.bias.double())
        weight = conv.weight.double() * scale[:, None, None, None]
        dtype, requires_grad = conv.weight.dtype, conv.weight.requires_grad
        weight = flush_denormals(weight.to(dtype))
        return nn.Parameter(weight, requires_grad), nn.Parameter(bias.to(dtype), requires_grad)
