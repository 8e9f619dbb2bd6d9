"""OctConv, alpha = 1/2, in ResNeXt-29 on CIFAR-100."""

_base_ = './resnext29_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='OctConv', alpha=1 / 2)))
