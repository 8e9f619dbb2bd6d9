"""GhostNet-R50, s = 2, of Table 3, whose printed 13.95 M no public definition explains: 14.89 M here."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='GhostConv'), norm_eval=False))
