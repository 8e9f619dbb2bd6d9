"""SCConv-R101 of Table 3: 28.00 M parameters."""

_base_ = './scconv_resnet50_imagenet.py'

model = dict(backbone=dict(depth=101))
