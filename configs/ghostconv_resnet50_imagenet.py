"""GhostNet-R50, s = 2, of Table 3: 14.89 M parameters. No public definition gives the printed 13.95 M."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='GhostConv'), norm_eval=False))
