"""Checks that a kernel may do a module's work: nobody can notice that the module is not called."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.group_norm import GroupNorm
from mmscconv.layers.hooked import all_are_hooked, is_hooked

logger = logging.getLogger('mmscconv')
Built = dict[str, tuple[Any, ...]]
M = TypeVar('M', bound=type[nn.Module])
_PLAIN = (nn.Parameter, Tensor)

Methods = tuple[tuple[str, Any], ...]


def methods_of(cls: type[nn.Module]) -> Methods:
    """Return ``forward``, and the methods that the classes of this package add to it or torch's Conv2d has for it.

    A method of torch that was replaced before this package was imported is None, which none equals.
    """
    ours = [vars(c) for c in cls.__mro__ if c.__module__.startswith('mmscconv.') or c is nn.Conv2d]
    names = {name for own in ours for name, value in own.items() if callable(value) and not hasattr(nn.Module, name)}
    found = {name: getattr(cls, name) for name in (*sorted(names), 'forward')}
    home = cls.__module__.partition('.')[0]
    return tuple(
        (name, function if function.__module__.partition('.')[0] in (home, 'torch') else None)
        for name, function in found.items()
    )


# Exact classes with the methods that a call of their objects runs: quantization, adapters and parametrizations are
# subclasses that compute something else, and other code may give a class or an object another method.
_KNOWN: dict[type[nn.Module], Methods] = {
    cls: methods_of(cls)
    for cls in (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, GroupNorm, AlignedAvgPool2d)
}
# Keys of the module's own dictionary, where look-ups are cheap, even of missing keys.
_SETTINGS = (
    'kernel_size',
    'stride',
    'padding',
    'dilation',
    'groups',
    'padding_mode',
    'num_groups',
    '_slack',
    '_offset',
)


def replaceable(cls: M) -> M:
    """Class decorator: kernels may do the work of objects of exactly this class."""
    _KNOWN[cls] = methods_of(cls)
    return cls


def as_its_class(module: nn.Module) -> bool:
    """Return whether kernels can do the work of ``forward`` of ``module``, while its class's own one runs."""
    methods = _KNOWN.get(type(module))
    return methods is not None and other_method(module, methods) in (None, 'forward')


def undisturbed(*modules: nn.Module | None) -> bool:
    """Return whether calls of ``modules`` run their classes' own forward alone, without hooks or replaced forwards."""
    return not all_are_hooked() and all(m is None or disturbance(m) is None for m in modules)


def disturbance(module: nn.Module) -> str | None:
    """Return why a call of ``module`` may not run its class's own methods alone, or None."""
    methods = _KNOWN.get(type(module))
    if methods is None:
        return f'it is a {type(module).__name__}'
    if is_hooked(module):
        return 'it has hooks, or a forward of its own'
    other = other_method(module, methods)
    return None if other is None else f'it is a {type(module).__name__} with another {other}'


def other_method(module: nn.Module, methods: Methods) -> str | None:
    """Return the first of ``methods`` that was replaced in the class or on the object, ``forward`` last."""
    cls, own = type(module), module.__dict__
    for name, function in methods:
        if getattr(cls, name) is not function or name in own:
            return name
    return None


def change_of(layer: Any) -> str | None:
    """Return the change of ``layer``, or of a module inside, since it was built, or None."""
    return disturbance(layer) or obstacle(layer, *layer.built)


def built(layer: nn.Module, names: Iterable[str]) -> Built:
    """Return settings and weight shapes of the modules of ``layer`` with these names, for :func:`intact`."""
    return {name: _geometry(layer._modules.get(name)) for name in names}


def intact(layer: Any, *names: str) -> bool:
    """Return whether these modules of ``layer`` are undisturbed and as in ``layer.built``, with plain tensor weights.

    A stride or dilation may have been changed, a module replaced, channels pruned or a
    weight parametrized since the layer was built; kernels read the layer's own settings
    alone.
    """
    reason = obstacle(layer, *names)
    if reason is not None and not torch.compiler.is_compiling():
        logger.debug('%s calls its modules: %s', type(layer).__name__, reason)
    return reason is None


def obstacle(layer: Any, *names: str) -> str | None:
    """Return why no kernel may do the work of these modules of ``layer``, or None."""
    if all_are_hooked():
        return 'a hook for all modules is registered'
    for name in names:
        module = layer._modules.get(name)
        reason = None if module is None else disturbance(module)
        if reason is None and _geometry(module) != layer.built.get(name):
            reason = 'its settings or weights are not those that it was built with'
        if reason is not None:
            return f'{name}: {reason}'
    return None


def _geometry(module: nn.Module | None) -> tuple[Any, ...]:
    """Return settings, and names and shapes of the weights; for tensor subclasses, the class."""
    if module is None:
        return ()
    settings = module.__dict__
    return (
        *[settings.get(name) for name in _SETTINGS],
        *[
            (name, None if p is None else p.shape if type(p) in _PLAIN else type(p))
            for name, p in module._parameters.items()
        ],
    )
