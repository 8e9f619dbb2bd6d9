"""TiedConv-R50, B = 2, of Table 3: 17.07 M parameters."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='TiedConv'), norm_eval=False))
