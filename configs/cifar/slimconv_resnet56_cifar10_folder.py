"""SlimConv, k = 1, in ResNet-56 on CIFAR-10 as image files."""

_base_ = './resnet56_cifar10_folder.py'

model = dict(backbone=dict(conv_cfg=dict(type='SlimConv', k=1)))
