"""SlimConv, k = 1, in DenseNet-121 on CIFAR-10."""

_base_ = './densenet121_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='SlimConv', k=1)))
