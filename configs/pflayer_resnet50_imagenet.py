"""R50-max of "Learning Features with Parameter-Free Layers": a max pool in the place of every 3x3; 14.24 M parameters.

Table 3 prints 18.00 M for PFLayer-R50_max, their own paper 14.2 M.
"""

_base_ = './resnet50_imagenet.py'

# norm_eval: the backbone is mmdet's ResNet, which by default freezes BN's statistics.
model = dict(backbone=dict(type='ConvResNet', conv_cfg=dict(type='PFLayer'), norm_eval=False))
