"""OctConv, alpha = 1/2, in ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(type='CIFAROctResNet', alpha=1 / 2))
