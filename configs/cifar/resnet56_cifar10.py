"""Baseline of Table 2: ResNet-56 on CIFAR-10."""

_base_ = ['./_base_/models/resnet56.py', './_base_/cifar10.py']
