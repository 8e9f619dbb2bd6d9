"""SlimConv-R50, k = 4/3, of Table 3: 16.76 M parameters."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SlimConv', k=4 / 3), norm_eval=False))
