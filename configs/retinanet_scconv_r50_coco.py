"""SCConv-R50 of Table 5: RetinaNet on COCO."""

_base_ = './retinanet_r50_coco.py'

# These settings give the printed 16.78 M parameters.
model = dict(backbone=dict(type='SCConvResNet', scconv=dict(low_squeeze='output', inner_norm=True)))
