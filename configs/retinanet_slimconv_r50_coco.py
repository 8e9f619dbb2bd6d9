"""SlimConv-R50 of Table 5, k = 1: RetinaNet on COCO."""

_base_ = './retinanet_r50_coco.py'

model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SlimConv', k=1)))
