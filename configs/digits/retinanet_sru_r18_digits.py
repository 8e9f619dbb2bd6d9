"""The digits demo with SRU alone, in front of the plain 3x3."""

_base_ = '../retinanet_scconv_r18_digits.py'

model = dict(backbone=dict(scconv=dict(arrangement='S')))
