"""A point of the thin curve of the digits demo: the plain network with a backbone of 20 channels in place of 32."""

_base_ = '../retinanet_r18_digits.py'

# 153.57 M multiply-adds at 128x128, plain 245.83 M.
channels = 20
model = dict(
    backbone=dict(base_channels=channels),
    neck=dict(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels]),
)
