"""Baseline of Table 2: DenseNet-121 on CIFAR-10 as image files."""

_base_ = ['./_base_/models/densenet121.py', './_base_/cifar10_folder.py']
