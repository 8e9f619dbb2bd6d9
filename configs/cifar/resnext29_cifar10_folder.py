"""Baseline of Table 2: ResNeXt-29 on CIFAR-10 as image files."""

_base_ = ['./_base_/models/resnext29.py', './_base_/cifar10_folder.py']
