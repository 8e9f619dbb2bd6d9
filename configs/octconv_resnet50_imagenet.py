"""OctConv-R50, alpha = 1/2, of Table 3: 25.56 M parameters, as the baseline."""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='OctResNet', alpha=1 / 2, norm_eval=False))
