"""The layers of the paper in PyTorch, with the kernels of :mod:`mmscconv.ops` where they fit.

Nothing here knows OpenMMLab.
"""

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.cru import CRU
from mmscconv.layers.scconv import SCConv
from mmscconv.layers.sru import SRU

__all__ = ['CRU', 'SRU', 'AlignedAvgPool2d', 'SCConv']
