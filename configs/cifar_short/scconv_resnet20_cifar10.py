"""SCConv in ResNet-20, with the settings of Table 2."""

_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='SCConv', low_squeeze='output', inner_norm=True)))
