"""SCConv: Spatial and Channel Reconstruction Convolution (CVPR 2023).

Importing this package needs torch alone. ``import mmscconv.models`` adds the
OpenMMLab side: the registered conv layer and the ``SCConvResNet`` backbone.
"""

from mmscconv.convert import convert_weights
from mmscconv.layers import CRU, SRU, LegacySCConv, SCConv
from mmscconv.replace import Replacement, replace_conv
from mmscconv.shipped import get_config, list_configs

__version__ = '0.1.0'
__all__ = [
    'CRU',
    'SRU',
    'LegacySCConv',
    'Replacement',
    'SCConv',
    '__version__',
    'convert_weights',
    'get_config',
    'list_configs',
    'replace_conv',
]
