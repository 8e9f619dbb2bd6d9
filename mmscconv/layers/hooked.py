"""Whether somebody watches or changes the computation of a module, which then has to be called as it is."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

FORWARD_HOOKS = ('_forward_pre_hooks', '_forward_hooks')


def is_hooked(module: nn.Module) -> bool:
    """Whether ``module`` has a hook of any kind, a parametrization, or a forward of this one instance.

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
    """Whether the forward of this one instance was replaced."""
    return 'forward' in module.__dict__


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` also calls a forward hook, of its own or one of all modules."""
    return any(getattr(module, hooks) or getattr(torch_module, f'_global{hooks}') for hooks in FORWARD_HOOKS)
