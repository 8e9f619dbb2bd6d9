"""SlimConv, k = 1, in ResNet-50 on CIFAR-10."""

_base_ = './resnet50_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='SlimConv', k=1)))
