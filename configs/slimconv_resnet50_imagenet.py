"""SlimConv-R50, k = 1, of Table 3: 18.81 M parameters."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SlimConv'), norm_eval=False))
