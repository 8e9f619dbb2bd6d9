"""OctConv, alpha = 1/2, in WideResNet-28-10 on CIFAR-100."""

_base_ = './wrn28_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='OctConv', alpha=1 / 2)))
