"""The backbones of Tables 1 and 2, for CIFAR's 32 x 32 images and mmpretrain's ``ImageClassifier``.

Each replaces exactly the convolutions that the paper replaces, by the layer of
its ``conv_cfg``.
"""

from mmscconv.models.cifar.densenet import CIFARDenseNet
from mmscconv.models.cifar.resnet import CIFARBottleneckResNet, CIFARResNet
from mmscconv.models.cifar.resnext import CIFARResNeXt
from mmscconv.models.cifar.wide_resnet import CIFARWideResNet

__all__ = ['CIFARBottleneckResNet', 'CIFARDenseNet', 'CIFARResNeXt', 'CIFARResNet', 'CIFARWideResNet']
