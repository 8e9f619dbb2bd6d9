"""SCConv in ResNet-20, X_low squeezed as Eq. 6 says, to (1 - alpha) * C1 / r channels."""

_base_ = './scconv_resnet20_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(low_squeeze='input')))
