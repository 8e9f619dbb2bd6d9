"""The OpenMMLab side: importing this module registers the conv layer, the backbone
and the model type ``ReplaceConv``.

Configs name it in ``custom_imports``. Everything is registered in mmengine's
root registry, where mmdet and mmpretrain both find it by its plain name.
"""

from mmscconv.models.conv import SCCONV_TYPE
from mmscconv.models.replace_conv import build_with_replaced_convs
from mmscconv.models.scconv_resnet import SCConvResNet

__all__ = ['SCCONV_TYPE', 'SCConvResNet', 'build_with_replaced_convs']
