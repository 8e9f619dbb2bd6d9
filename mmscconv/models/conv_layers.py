"""Registers the layers for ``build_conv_layer(dict(type='SCConv'), ...)``."""

from mmengine.registry import MODELS

from mmscconv.layers import SCConv
from mmscconv.layers.rivals import GhostConv, OctConv, PFLayer, SlimConv, SPConv, TiedConv, VersatileConv
from mmscconv.legacy import LegacySCConv

SCCONV_TYPE = 'SCConv'
for layer in (SCConv, LegacySCConv, SPConv, TiedConv, GhostConv, SlimConv, OctConv, PFLayer, VersatileConv):
    MODELS.register_module(module=layer)
