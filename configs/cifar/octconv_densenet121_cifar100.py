"""OctConv, alpha = 1/2, in DenseNet-121 on CIFAR-100."""

_base_ = './densenet121_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='OctConv', alpha=1 / 2)))
