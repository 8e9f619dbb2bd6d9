"""Baseline of Table 2: DenseNet-121 on CIFAR-100."""

_base_ = ['./_base_/models/densenet121.py', './_base_/cifar100.py']

model = dict(head=dict(num_classes=100))
