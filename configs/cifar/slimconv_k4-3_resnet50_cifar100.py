"""SlimConv, k = 4/3, in ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='SlimConv', k=4 / 3)))
