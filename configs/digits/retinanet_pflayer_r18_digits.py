"""The digits demo with PFLayer in the place of SCConv."""

_base_ = '../retinanet_r18_digits.py'

model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='PFLayer')))
