"""Initializers of mmengine that meet a layer in the place of one convolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

MODULE = 'mmengine.model.weight_init'
ABSOLUTE = ('NormalInit', 'TruncNormalInit', 'UniformInit', 'ConstantInit')
CONV_NAMES = ('Conv2d', '_ConvNd')  # by which mmengine finds an nn.Conv2d: its class and its base


def apply_as_to_one(layer: nn.Module, function: Callable[[nn.Module], Any], multiplies: bool) -> bool:
    """Apply ``function`` to ``layer`` as to one convolution if mmengine's initializers call it; return whether it was.

    mmengine initializes by ``module.apply(init)`` whatever is called ``Conv2d``. Two
    cases are meant for the convolution that ``layer`` stands in for, and would break
    what it has inside:

    * A fixed scale, such as the ``Normal(layer='Conv2d', std=0.01)`` of most heads of
      mmdet. Where the output is a product of several weights (``multiplies``), it is
      0.01^3 times too small, and does not train.
    * An override of one layer by its name, as heads have for their prediction layers,
      which sets all weights and biases inside of it, those of norms too: a bias of
      -4.6 for rare objects closes the SRU's gate for good.

    In both, the bias of ``layer`` is set as that of an ``nn.Conv2d`` would be, and
    what is inside keeps its own initialization; norms that the first case names get
    their values. All else, such as Kaiming and Xavier, whose scale follows from
    each weight's shape, is left to the caller.

    Args:
        layer: Whose ``apply`` was called.
        function: What it was called with.
        multiplies: Whether its output is a product of several convolutions' weights,
            without norms between them.
    """
    initializer = _initializer(function)
    if initializer is None:
        return False
    if initializer.wholemodule:
        if not multiplies and not any(isinstance(m, _NormBase | nn.GroupNorm) for m in layer.modules()):
            return False
    elif multiplies and {kind.__name__ for kind in type(initializer).__mro__}.intersection(ABSOLUTE):
        for module in layer.modules():
            if module is not layer and not isinstance(module, nn.Conv2d):
                function(module)
    else:
        return False
    named = initializer.wholemodule or {*CONV_NAMES, type(layer).__name__}.intersection(initializer.layer)
    bias = getattr(layer, 'bias', None)
    if named and bias is not None:
        nn.init.constant_(bias, initializer.bias)
    return True


def _initializer(function: Callable[..., Any]) -> Any:
    """Return the initializer of mmengine of which ``function`` is the inner ``init``, or None."""
    # Told by its names: nothing here imports mmengine.
    if getattr(function, '__module__', None) != MODULE or not inspect.isfunction(function):
        return None
    found = inspect.getclosurevars(function).nonlocals.get('self')
    return found if hasattr(found, 'wholemodule') and hasattr(found, 'layer') and hasattr(found, 'bias') else None
