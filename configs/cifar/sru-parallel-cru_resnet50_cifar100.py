"""Table 1: SRU and CRU in parallel; ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='SCConv', arrangement='C&S', low_squeeze='output', inner_norm=True)))
