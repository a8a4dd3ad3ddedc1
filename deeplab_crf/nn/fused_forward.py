"""Replacement of a module's forward by a rewritten graph, leaving everything else of the module unchanged."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn


class FusedForward:
    """The attribute ``forward`` of a fused module that is called by code which torch.fx cannot follow.

    The graph was traced with proxies for tensors. For arguments of other types (a list of features, a
    number, None), the forward of the module's class runs.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module = module
        code = graph.python_code("self")
        self.source = code.src
        # Stored by name, since Python modules cannot be pickled.
        self.packages = {name: value.__name__ for name, value in code.globals.items() if isinstance(value, ModuleType)}
        self.names = {name: value for name, value in code.globals.items() if not isinstance(value, ModuleType)}
        self._compile()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Compute the forward of the module."""
        if all(isinstance(value, Tensor) for value in (*arguments, *named.values())):
            return self._function(self.module, *arguments, **named)
        return self.plain(*arguments, **named)

    def plain(self, *arguments: Any, **named: Any) -> Any:
        """Compute the forward of the module's class."""
        return type(self.module).forward(self.module, *arguments, **named)

    def _compile(self) -> None:
        packages = {name: importlib.import_module(package) for name, package in self.packages.items()}
        names: dict[str, Any] = {**self.names, **packages}
        exec(compile(self.source, f"<fused {type(self.module).__name__}>", "exec"), names)
        self._function = names["forward"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()


def is_fused(module: nn.Module) -> bool:
    """Return whether the module runs a `FusedForward`."""
    return isinstance(vars(module).get("forward"), FusedForward)


def install_forward(module: nn.Module, traced: fx.GraphModule, added: dict[str, str]) -> list[tuple[nn.Module, str]]:
    """Make a module run its rewritten graph.

    The new modules of the graph become children ``fused`` of the convolutions that they replace: no
    network iterates over the children of a convolution, and ``to``, ``state_dict`` and ``train`` reach them.

    Args:
        module: The module, whose attribute ``forward`` is set.
        traced: Its rewritten graph.
        added: The new modules of the graph: name -> name of the convolution.

    Returns:
        The owner and the name in it of each new module.
    """
    children, targets = [], {}
    for name, owner_name in added.items():
        owner = module.get_submodule(owner_name)
        label = next(label for i in itertools.count() if not hasattr(owner, label := f"fused_{i}" if i else "fused"))
        owner.add_module(label, traced.get_submodule(name))
        children.append((owner, label))
        targets[name] = f"{owner_name}.{label}"
    for node in traced.graph.nodes:
        if node.op == "call_module":
            node.target = targets.get(str(node.target), node.target)
        elif node.op == "get_attr" and str(node.target).startswith(
            "_tensor_constant"
        ):  # moves with the module as a buffer
            value = vars(module).pop(node.target, None)
            if value is not None:
                module.register_buffer(node.target, value, persistent=False)
    vars(module)["forward"] = FusedForward(module, traced.graph)
    return children
