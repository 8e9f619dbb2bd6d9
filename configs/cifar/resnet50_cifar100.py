"""Baseline of Table 2: ResNet-50 on CIFAR-100."""

_base_ = ['./_base_/models/resnet50.py', './_base_/cifar100.py']

model = dict(head=dict(num_classes=100))
