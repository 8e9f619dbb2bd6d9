"""The control of SCConv everywhere: the plain network, thinner from backbone to head."""

_base_ = './retinanet_r18_cells.py'

# 617.0 M multiply-adds at 320x240, SCConv everywhere 594.4 M (tools/complexity.py).
channels, width = 23, 48
model = dict(
    backbone=dict(base_channels=channels),
    neck=dict(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels], out_channels=width),
    bbox_head=dict(in_channels=width, feat_channels=width),
)
