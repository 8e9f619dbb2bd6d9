"""The control of SCConv everywhere: the plain network, thinner from backbone to head, for as many multiply-adds."""

_base_ = '../retinanet_r18_digits.py'

# 139.47 M multiply-adds at 128x128, SCConv in backbone, FPN and towers 137.65 M (tools/complexity.py). The width is a
# multiple of the towers' 16 groups.
channels, width = 23, 48
model = dict(
    backbone=dict(base_channels=channels),
    neck=dict(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels], out_channels=width),
    bbox_head=dict(in_channels=width, feat_channels=width),
)
