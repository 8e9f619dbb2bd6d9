"""Baseline of Table 4: RetinaNet with a plain ResNet-101 on VOC."""

_base_ = './retinanet_r50_voc.py'

model = dict(backbone=dict(depth=101))
