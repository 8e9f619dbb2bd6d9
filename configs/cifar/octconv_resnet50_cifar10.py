"""OctConv, alpha = 1/2, in ResNet-50 on CIFAR-10."""

_base_ = './resnet50_cifar10.py'

model = dict(backbone=dict(type='CIFAROctResNet', alpha=1 / 2))
