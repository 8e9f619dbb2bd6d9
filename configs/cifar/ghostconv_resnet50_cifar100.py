"""GhostConv, s = 2, in ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='GhostConv', ratio=2)))
