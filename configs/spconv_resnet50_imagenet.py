"""SPConv-R50, alpha = 1/2, of Table 3: 18.34 M parameters."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='SPConv'), norm_eval=False))
