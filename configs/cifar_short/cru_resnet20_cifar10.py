"""CRU alone in ResNet-20."""

_base_ = './scconv_resnet20_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(arrangement='C')))
