"""RetinaNet with SCConv-R101 (28.00 M parameters) on COCO."""

_base_ = './retinanet_scconv_r50_coco.py'

model = dict(backbone=dict(depth=101))
