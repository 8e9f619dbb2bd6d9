"""Table 1: SRU, then CRU, which is SCConv; ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='SCConv', arrangement='S+C', low_squeeze='output', inner_norm=True)))
