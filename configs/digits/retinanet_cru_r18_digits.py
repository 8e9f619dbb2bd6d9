"""The digits demo with CRU alone."""

_base_ = '../retinanet_scconv_r18_digits.py'

model = dict(backbone=dict(scconv=dict(arrangement='C')))
