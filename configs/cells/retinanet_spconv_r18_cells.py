"""SPConv in the place of SCConv, on blood cells."""

_base_ = './retinanet_r18_cells.py'

model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SPConv')))
