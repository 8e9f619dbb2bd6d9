"""Many layers in one network: one file of it asks a runtime about all of them."""

import copy
import re

import torch
from torch import nn

from helpers.trained import relative


class SideBySide(nn.Module):
    """Layers on one input, whose outputs are a tuple."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def name_of(settings):
    """Return settings as a name that every format can hold."""
    return re.sub(r'\W+', '_', str(settings)).strip('_') or 'default'


def require_agreement(model, x, got, most=1e-5):
    """Compare an output with that of ``model`` in float64."""
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
    assert got.shape == want.shape
    assert relative(got, want) < most
