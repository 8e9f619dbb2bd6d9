"""SCConv-R50, alpha = 1/2, of Table 3: 16.78 M parameters."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='SCConvResNet', norm_eval=False, scconv=dict(low_squeeze='output', inner_norm=True)))
