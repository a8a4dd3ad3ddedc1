"""Convolutions whose weight is computed from other tensors: weight and spectral normalisation, pruning."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Return whether calling the module runs more than the forward of its class."""
    return "forward" in vars(module) or any(getattr(module, name, None) for name in _HOOKS)


def plain_convolution(module: nn.Module) -> nn.Conv2d | None:
    """Return a torch.nn.Conv2d with the current weight of a reparametrized one, or None for any other module."""
    if not _is_reparametrized(module):
        return None
    plain = nn.Conv2d.__new__(nn.Conv2d)
    vars(plain).update({name: value for name, value in vars(module).items() if name not in ("weight", "bias")})
    vars(plain).update({name: type(vars(module)[name])() for name in _HOOKS if vars(module).get(name)})
    vars(plain).update(_buffers={}, _modules={}, _parameters={})
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            hook(module, ())
        for name in ("weight", "bias"):
            value = getattr(module, name)
            requires_grad = any(parameter.requires_grad for parameter in module.parameters())
            plain.register_parameter(
                name, None if value is None else nn.Parameter(value.detach().clone(), requires_grad)
            )
    return plain


def _is_reparametrized(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module):
        return type(module).__bases__ == (nn.Conv2d,) and not is_hooked(module)
    hooks = getattr(module, "_forward_pre_hooks", {})
    known = all(isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod) for hook in hooks.values())
    others = "forward" in vars(module) or any(
        getattr(module, name, None) for name in _HOOKS if name != "_forward_pre_hooks"
    )
    return type(module) is nn.Conv2d and bool(hooks) and known and not others
