"""Figure 4: SCConv with alpha = 5/8 in ResNet-50 on CIFAR-100."""

_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(conv_cfg=dict(type='SCConv', alpha=5 / 8, inner_norm=True)))
