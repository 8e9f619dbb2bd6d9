"""The digits demo with the hard gate."""

_base_ = '../retinanet_scconv_r18_digits.py'

model = dict(backbone=dict(scconv=dict(gate='hard')))
