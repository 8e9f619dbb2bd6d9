"""Baseline of Table 2: ResNeXt-29 on CIFAR-100."""

_base_ = ['./_base_/models/resnext29.py', './_base_/cifar100.py']

model = dict(head=dict(num_classes=100))
