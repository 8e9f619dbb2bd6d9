"""GhostConv, s = 2, in ResNet-20."""

_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='GhostConv', ratio=2)))
