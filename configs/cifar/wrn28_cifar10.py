"""Baseline of Table 2: WideResNet-28-10 on CIFAR-10."""

_base_ = ['./_base_/models/wrn28.py', './_base_/cifar10.py']
