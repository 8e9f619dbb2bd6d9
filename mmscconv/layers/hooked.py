"""Detection of hooks, parametrizations and replaced forwards; a module with one has to be called as it is."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from mmscconv.ops.recomputation import Decision

FORWARD_HOOKS = ('_forward_pre_hooks', '_forward_hooks')
ALL_HOOKED = Decision()


def is_hooked(module: nn.Module) -> bool:
    """Return whether ``module`` has a hook of any kind, a parametrization, or a ``forward`` set on the instance.

    Pruning and the older forms of weight norm and spectral norm are forward
    pre-hooks; mmengine's ``efficient_conv_bn_eval`` and wrappers such as
    accelerate's set ``forward`` on the instance.
    """
    return (
        bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
        or has_own_forward(module)
        or 'parametrizations' in module._modules
    )


def has_own_forward(module: nn.Module) -> bool:
    """Return whether ``forward`` was set on this instance."""
    return 'forward' in module.__dict__


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether a call of ``module`` also calls a forward hook, its own or a global one."""
    return any(getattr(module, hooks) or getattr(torch_module, f'_global{hooks}') for hooks in FORWARD_HOOKS)


def all_are_hooked() -> bool:
    """Return whether a hook for all modules is registered, as FlopCounterMode does.

    In a recomputation: whether one was in the forward pass.
    """
    then = None if torch.compiler.is_compiling() else ALL_HOOKED.then
    return torch_module._has_any_global_hook() if then is None else then
