"""The digits demo's control: the plain network with a thinner backbone, for as many multiply-adds as SCConv's."""

_base_ = '../retinanet_r18_digits.py'

# 187.28 M multiply-adds at 128x128, SCConv 187.11 M, plain 245.83 M (tools/complexity.py).
channels = 25
model = dict(
    backbone=dict(base_channels=channels),
    neck=dict(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels]),
)
