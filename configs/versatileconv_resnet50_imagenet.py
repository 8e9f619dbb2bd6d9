"""Spatial versatile filters in ResNet-50: 19.90 M parameters. Table 3 prints 18.70 M for Versatile-R50."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='VersatileConv'), norm_eval=False))
