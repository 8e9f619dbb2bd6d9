"""SPConv-R50 of Table 4, alpha = 3/4: RetinaNet on VOC."""

_base_ = './retinanet_r50_voc.py'

# The printed 19.76 M parameters are those of alpha = 3/4.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SPConv', alpha=3 / 4)))
