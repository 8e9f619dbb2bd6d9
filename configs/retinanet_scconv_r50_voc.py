"""SCConv-R50 of Table 4: RetinaNet on VOC."""

_base_ = './retinanet_r50_voc.py'

# These settings give the printed 16.78 M parameters.
model = dict(backbone=dict(type='SCConvResNet', scconv=dict(low_squeeze='output', inner_norm=True)))
