"""Baseline of Table 2: WideResNet-28-10 on CIFAR-10 as image files."""

_base_ = ['./_base_/models/wrn28.py', './_base_/cifar10_folder.py']
