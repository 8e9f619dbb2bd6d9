"""The digits demo with SRU alone in a thin backbone, to tell whether SRU's gain is left at SCConv's cost."""

_base_ = './retinanet_sru_r18_digits.py'

# SRU needs an even number; 25, as the thin plain network has, are none.
channels = 24
model = dict(
    backbone=dict(base_channels=channels),
    neck=dict(in_channels=[channels, 2 * channels, 4 * channels, 8 * channels]),
)
