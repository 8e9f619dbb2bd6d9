"""TiedConv, B = 2, in ResNet-56 on CIFAR-100."""

_base_ = './resnet56_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='TiedConv', blocks=2)))
