"""The digits demo with X_low squeezed as Eq. 6 says, to (1 - alpha) * C1 / r channels."""

_base_ = '../retinanet_scconv_r18_digits.py'

model = dict(backbone=dict(scconv=dict(low_squeeze='input')))
