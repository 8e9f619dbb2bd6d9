"""The convolutions that the paper compares SCConv with (Tables 2-5), behind ``nn.Conv2d``'s interface.

Written from their own papers; each file names the choices that the SCConv
paper's printed counts decide. Plain PyTorch, but for SPConv, whose last sum is a kernel of SCConv's.
"""

from mmscconv.layers.rivals.ghost_conv import GhostConv
from mmscconv.layers.rivals.oct_conv import OctaveConv2d, OctConv
from mmscconv.layers.rivals.pf_layer import PFLayer
from mmscconv.layers.rivals.slim_conv import SlimConv
from mmscconv.layers.rivals.sp_conv import SPConv
from mmscconv.layers.rivals.tied_conv import TiedConv
from mmscconv.layers.rivals.versatile_conv import VersatileConv

__all__ = ['GhostConv', 'OctConv', 'OctaveConv2d', 'PFLayer', 'SPConv', 'SlimConv', 'TiedConv', 'VersatileConv']
