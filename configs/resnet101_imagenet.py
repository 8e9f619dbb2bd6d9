"""Baseline of Table 3: ResNet-101 on ImageNet-1K."""

_base_ = './resnet50_imagenet.py'

model = dict(backbone=dict(depth=101))
