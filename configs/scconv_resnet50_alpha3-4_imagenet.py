"""SCConv-R50, alpha = 3/4, of Table 3: 17.69 M parameters."""

_base_ = './scconv_resnet50_imagenet.py'

model = dict(backbone=dict(scconv=dict(alpha=3 / 4)))
