"""Baseline of Table 2: ResNet-50 on CIFAR-10."""

_base_ = ['./_base_/models/resnet50.py', './_base_/cifar10.py']
