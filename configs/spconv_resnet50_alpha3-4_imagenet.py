"""SPConv-R50, alpha = 3/4, the backbone of Tables 4 and 5: 19.76 M parameters."""

_base_ = './spconv_resnet50_imagenet.py'

model = dict(backbone=dict(conv_cfg=dict(alpha=3 / 4)))
