"""The demo: a small RetinaNet with SCConv on handwritten digits, minutes on two CPU cores.

tools/make_digits.py makes the data set. The twin is retinanet_r18_digits.py.
"""

_base_ = './retinanet_r18_digits.py'

model = dict(backbone=dict(type='SCConvResNet', scconv=dict(low_squeeze='output', inner_norm=True)))
