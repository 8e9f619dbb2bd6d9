"""The OpenMMLab side: importing this module registers the conv layer and the backbone.

Configs name it in ``custom_imports``. Everything is registered in mmengine's
root registry, where mmdet and mmpretrain both find it by its plain name.
"""

from mmscconv.models.conv import SCCONV_TYPE
from mmscconv.models.scconv_resnet import SCConvResNet

__all__ = ['SCCONV_TYPE', 'SCConvResNet']
