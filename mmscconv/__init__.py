"""SCConv: Spatial and Channel Reconstruction Convolution (CVPR 2023).

Importing this package needs torch alone. ``import mmscconv.models`` adds the
OpenMMLab side: the registered conv layer and the ``SCConvResNet`` backbone.
"""

try:
    import torch  # noqa: F401, for the error: the doctor cannot report it, as it is a part of this package
except (ImportError, OSError) as error:
    raise ImportError(
        f'torch cannot be imported: {error}\nTo mend:\n    pip install torch==2.11.0 torchvision==0.26.0'
    ) from error

from mmscconv.layers import CRU, SRU, SCConv
from mmscconv.legacy import LegacySCConv, convert_weights
from mmscconv.replace import Replacement, replace_conv
from mmscconv.shipped import get_config, get_weights, list_configs, list_weights

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
    'get_weights',
    'list_configs',
    'list_weights',
    'replace_conv',
]
