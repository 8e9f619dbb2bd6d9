"""SCConv-R101 of Table 4: RetinaNet on VOC."""

_base_ = './retinanet_scconv_r50_voc.py'

model = dict(backbone=dict(depth=101))
