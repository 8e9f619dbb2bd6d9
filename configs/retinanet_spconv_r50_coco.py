"""SPConv-R50 of Table 5, alpha = 3/4: RetinaNet on COCO."""

_base_ = './retinanet_r50_coco.py'

# The printed 19.76 M parameters are those of alpha = 3/4.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SPConv', alpha=3 / 4)))
