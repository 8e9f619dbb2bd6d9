"""The OpenMMLab side: importing this module registers the conv layers, the backbones and ReplaceConv.

Configs name this module in ``custom_imports``; it registers the package's hooks, too.
Everything is registered in mmengine's root registry, where mmdet and mmpretrain both
find it by its plain name.
"""

import mmscconv.datasets
import mmscconv.hooks
import mmscconv.optim  # noqa: F401, configs that set custom_imports anew name this module alone
from mmscconv.models.cifar import (
    CIFARBottleneckResNet,
    CIFARDenseNet,
    CIFARResNet,
    CIFARResNeXt,
    CIFARWideResNet,
)
from mmscconv.models.conv_layers import SCCONV_TYPE
from mmscconv.models.conv_resnet import ConvResNet
from mmscconv.models.deploy import switch_to_deploy
from mmscconv.models.oct_resnet import CIFAROctResNet, OctResNet
from mmscconv.models.replace_conv import build_with_replaced_convs
from mmscconv.models.scconv_resnet import SCConvResNet

__all__ = [
    'SCCONV_TYPE',
    'CIFARBottleneckResNet',
    'CIFARDenseNet',
    'CIFAROctResNet',
    'CIFARResNeXt',
    'CIFARResNet',
    'CIFARWideResNet',
    'ConvResNet',
    'OctResNet',
    'SCConvResNet',
    'build_with_replaced_convs',
    'switch_to_deploy',
]
