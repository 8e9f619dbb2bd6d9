"""mmengine's initializers, applied to a layer that replaces one convolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

MODULE = 'mmengine.model.weight_init'
ABSOLUTE = ('NormalInit', 'TruncNormalInit', 'UniformInit', 'ConstantInit')
CONV_NAMES = ('Conv2d', '_ConvNd')  # class and base class: mmengine finds an nn.Conv2d by these names


def apply_as_to_one(layer: nn.Module, function: Callable[[nn.Module], Any], multiplies: bool) -> bool:
    """Apply an initializer of mmengine to ``layer`` as to one convolution; return whether this was done.

    mmengine initializes everything called ``Conv2d`` by ``module.apply(init)``. Two
    cases are meant for the convolution that ``layer`` replaces, and would break the
    modules inside:

    * A fixed scale, such as the ``Normal(layer='Conv2d', std=0.01)`` of most heads of
      mmdet: an output that is a product of several weights (``multiplies``) would be
      0.01^3 times too small, and not train.
    * An override of one layer by its name, as heads have for their prediction layers.
      It sets all weights and biases inside, those of norms too: a bias of -4.6 for
      rare objects closes the SRU's gate for good.

    In both, the bias of ``layer`` is set like an ``nn.Conv2d``'s, and the modules
    inside keep their own initialization, except norms that the first case names.
    Everything else, such as Kaiming and Xavier, whose scale follows from each
    weight's shape, is left to the caller.

    Args:
        layer: The layer whose ``apply`` was called.
        function: The argument of ``apply``.
        multiplies: Whether the layer's output is a product of several convolutions'
            weights, without norms between them.
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
    """Return mmengine's initializer whose inner ``init`` is ``function``, or None."""
    # Recognized by names: the layers do not import mmengine.
    if getattr(function, '__module__', None) != MODULE or not inspect.isfunction(function):
        return None
    found = inspect.getclosurevars(function).nonlocals.get('self')
    return found if hasattr(found, 'wholemodule') and hasattr(found, 'layer') and hasattr(found, 'bias') else None
