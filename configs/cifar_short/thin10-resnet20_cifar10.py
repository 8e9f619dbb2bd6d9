"""ResNet-20 of 10 channels in place of 16, a point of the thin curve."""

_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(stem_channels=10, base_channels=10), head=dict(in_channels=4 * 10))
