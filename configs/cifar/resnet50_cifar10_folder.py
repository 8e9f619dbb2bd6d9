"""Baseline of Table 2: ResNet-50 on CIFAR-10 as image files."""

_base_ = ['./_base_/models/resnet50.py', './_base_/cifar10_folder.py']
