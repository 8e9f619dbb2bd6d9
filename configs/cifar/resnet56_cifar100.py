"""Baseline of Table 2: ResNet-56 on CIFAR-100."""

_base_ = ['./_base_/models/resnet56.py', './_base_/cifar100.py']

model = dict(head=dict(num_classes=100))
