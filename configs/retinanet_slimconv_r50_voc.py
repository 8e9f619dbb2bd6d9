"""SlimConv-R50 of Table 4, k = 1: RetinaNet on VOC."""

_base_ = './retinanet_r50_voc.py'

model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SlimConv', k=1)))
