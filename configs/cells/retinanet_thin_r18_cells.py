"""The control: the plain network with a thinner backbone, for as many multiply-adds as SCConv's."""

_base_ = './retinanet_r18_cells.py'

# 828.3 M multiply-adds at 320x240, SCConv 827.0 M, plain 1106.9 M (tools/complexity.py).
channels = 25
model = dict(
    backbone=dict(base_channels=channels),
    neck=dict(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels]),
)
