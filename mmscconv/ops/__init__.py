"""The arithmetic of the layers that has more than one implementation: plain PyTorch beside compiled kernels."""

from mmscconv.ops.backend import BACKENDS, check_backend, choose_backend, plain_only
from mmscconv.ops.fuse import fuse
from mmscconv.ops.norm_fuse import norm_fuse
from mmscconv.ops.packing import can_pack, packed, packed_transform
from mmscconv.ops.pointwise import Window, fits, runs_on, scconv, sru_squeeze, transform_fuse
from mmscconv.ops.sru import logit, separate_and_cross, sru

__all__ = [
    'BACKENDS',
    'Window',
    'can_pack',
    'check_backend',
    'choose_backend',
    'fits',
    'fuse',
    'logit',
    'norm_fuse',
    'packed',
    'packed_transform',
    'plain_only',
    'runs_on',
    'scconv',
    'separate_and_cross',
    'sru',
    'sru_squeeze',
    'transform_fuse',
]
