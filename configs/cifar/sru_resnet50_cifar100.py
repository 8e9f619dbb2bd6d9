"""Table 1: SRU alone, in front of the plain 3x3; ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='SCConv', arrangement='S', low_squeeze='output', inner_norm=True)))
