"""Registers SCConv for ``build_conv_layer(dict(type='SCConv'), ...)``."""

from mmengine.registry import MODELS

from mmscconv.layers import SCConv

SCCONV_TYPE = 'SCConv'
MODELS.register_module(name=SCCONV_TYPE, module=SCConv)
