"""Puts a rewritten forward in the place of that of a module's class; all else of the module stays as it was."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn


class FusedForward:
    """What `fuse` puts into the attribute ``forward`` of a module that is called by code that it could not follow.

    The graph was followed with stand-ins for tensors. Called with anything else (a list of features, a number, None), the
    forward of the module's class runs.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module = module
        code = graph.python_code("self")
        self.source = code.src
        # Kept apart since modules cannot be pickled.
        self.packages = {name: value.__name__ for name, value in code.globals.items() if isinstance(value, ModuleType)}
        self.names = {name: value for name, value in code.globals.items() if not isinstance(value, ModuleType)}
        self._compile()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Like forward of the module."""
        if all(isinstance(value, Tensor) for value in (*arguments, *named.values())):
            return self._function(self.module, *arguments, **named)
        return self.plain(*arguments, **named)

    def plain(self, *arguments: Any, **named: Any) -> Any:
        """The forward of the module's class."""
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
    """Whether the module runs a `FusedForward`."""
    return isinstance(vars(module).get("forward"), FusedForward)


def give_forward(module: nn.Module, traced: fx.GraphModule, added: dict[str, str]) -> list[tuple[nn.Module, str]]:
    """Lets a module run a graph that was made from it.

    The modules that were added to the graph are put into the convolutions that they stand for, as ``fused``: no network goes
    through the children of a convolution, and moving, saving and setting the mode reach them there.

    Args:
        module: Gets the attribute ``forward``.
        traced: Its graph, rewritten.
        added: The modules that the graph has and ``module`` has not: name -> name of the convolution.

    Returns:
        The convolutions, and the names in them, of what was added.
    """
    places, targets = [], {}
    for name, owner_name in added.items():
        owner = module.get_submodule(owner_name)
        label = next(label for i in itertools.count() if not hasattr(owner, label := f"fused_{i}" if i else "fused"))
        owner.add_module(label, traced.get_submodule(name))
        places.append((owner, label))
        targets[name] = f"{owner_name}.{label}"
    for node in traced.graph.nodes:
        if node.op == "call_module":
            node.target = targets.get(str(node.target), node.target)
        elif node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):  # to be moved with the module
            value = vars(module).pop(node.target, None)
            if value is not None:
                module.register_buffer(node.target, value, persistent=False)
    vars(module)["forward"] = FusedForward(module, traced.graph)
    return places
