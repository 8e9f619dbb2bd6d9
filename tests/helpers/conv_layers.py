"""The layers that stand in for nn.Conv2d, for tests of their common behaviour."""

import pytest

from mmscconv import LegacySCConv, SCConv
from mmscconv.layers.rivals import GhostConv, OctConv, PFLayer, SlimConv, SPConv, TiedConv, VersatileConv

RIVALS = {
    'SPConv': (SPConv, {}),
    'TiedConv': (TiedConv, {}),
    'GhostConv': (GhostConv, {}),
    'GhostConv-full': (GhostConv, {'pointwise': False, 'ratio': 3}),
    'SlimConv': (SlimConv, {}),
    'SlimConv-4/3': (SlimConv, {'k': 4 / 3}),
    'OctConv': (OctConv, {}),
    'PFLayer': (PFLayer, {}),
    'VersatileConv': (VersatileConv, {}),
    'LegacySCConv': (LegacySCConv, {}),
}
LAYERS = {
    'SCConv': (SCConv, {}),
    'SCConv-norms': (SCConv, {'inner_norm': True, 'low_squeeze': 'output'}),
    'SCConv-alpha=0': (SCConv, {'alpha': 0, 'inner_norm': True}),
    'SCConv-alpha=1': (SCConv, {'alpha': 1, 'inner_norm': True}),
    'SCConv-C+S': (SCConv, {'arrangement': 'C+S', 'backend': 'plain'}),
    'SCConv-C&S': (SCConv, {'arrangement': 'C&S'}),
    'SCConv-S': (SCConv, {'arrangement': 'S'}),
    'SCConv-C': (SCConv, {'arrangement': 'C', 'inner_norm': True}),
    **RIVALS,
}
layers = pytest.mark.parametrize(('layer', 'settings'), LAYERS.values(), ids=LAYERS)
