"""Baseline of Table 2: WideResNet-28-10 on CIFAR-100."""

_base_ = ['./_base_/models/wrn28.py', './_base_/cifar100.py']

model = dict(head=dict(num_classes=100))
