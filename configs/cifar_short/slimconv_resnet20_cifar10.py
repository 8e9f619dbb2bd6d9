"""SlimConv, k = 1, in ResNet-20."""

_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='SlimConv', k=1)))
