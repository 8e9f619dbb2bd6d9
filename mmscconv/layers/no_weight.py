"""The error for code that reads ``weight`` of a layer with several weights."""

from __future__ import annotations

from typing import Any

from torch import nn


class NoWeight(nn.Module):
    """A mixin: reading ``weight`` of a layer that has none raises an AttributeError that names the way out."""

    def __getattr__(self, name: str) -> Any:
        # Not a property: torch's own __getattr__ would replace the message of its AttributeError.
        if name == 'weight' and name not in self.__dict__.get('_parameters', {name}):
            raise AttributeError(_no_weight(self))
        return super().__getattr__(name)


def _no_weight(layer: nn.Module) -> str:
    name = type(layer).__name__
    names = [key for key, _ in layer.named_parameters() if '.' in key]
    inner = ', '.join(key for key in names if key.endswith('.weight')) or ('several inside' if names else 'none')
    return (
        f'{name} has no weight of its own, unlike nn.Conv2d; its weights: {inner}. '
        f'Initialization: leave it to reset_parameters() and skip {name} in functions such as weights_init. '
        "Folding norms: mmscconv.models.switch_to_deploy(model) in place of a detector's own fuse(). "
        'Listing weights: named_parameters().'
    )
