"""SCConv in ResNeXt-29 on CIFAR-10 as image files."""

_base_ = './resnext29_cifar10_folder.py'

model = dict(backbone=dict(conv_cfg=dict(type='SCConv', inner_norm=True)))
