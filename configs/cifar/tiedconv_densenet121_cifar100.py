"""TiedConv, B = 2, in DenseNet-121 on CIFAR-100."""

_base_ = './densenet121_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='TiedConv', blocks=2, bias=True)))
