"""RetinaNet with a plain ResNet-101 on COCO: the twin of SCConv-R101."""

_base_ = './retinanet_r50_coco.py'

model = dict(backbone=dict(depth=101))
