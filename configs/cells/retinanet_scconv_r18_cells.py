"""SCConv on blood cells, as in the demo."""

_base_ = './retinanet_r18_cells.py'

model = dict(backbone=dict(type='SCConvResNet', scconv=dict(low_squeeze='output', inner_norm=True)))
