"""SPConv, alpha = 1/2, in ResNet-56 on CIFAR-10."""

_base_ = './resnet56_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='SPConv', alpha=1 / 2)))
