"""The arithmetic of the layers that has more than one implementation: plain PyTorch beside compiled kernels."""

from mmscconv.ops.backend import (
    BACKENDS,
    LOOKED_ON,
    becoming_graph,
    check_backend,
    choose_backend,
    exporting,
    fits,
    has_autocast,
    looked_on,
    observed,
    overridden,
    plain_only,
    transformed,
)
from mmscconv.ops.batch_norm import batch_norm
from mmscconv.ops.fuse import fuse
from mmscconv.ops.layout import layout_of
from mmscconv.ops.norm_fuse import norm_fuse
from mmscconv.ops.packing import can_pack, fingerprint, packed, packed_transform
from mmscconv.ops.scconv import scconv, scconv_runs_on
from mmscconv.ops.split import split_channels
from mmscconv.ops.sru import sru
from mmscconv.ops.sru_squeeze import sru_squeeze
from mmscconv.ops.transform_fuse import transform_fuse
from mmscconv.ops.window import Window

__all__ = [
    'BACKENDS',
    'LOOKED_ON',
    'Window',
    'batch_norm',
    'becoming_graph',
    'can_pack',
    'check_backend',
    'choose_backend',
    'exporting',
    'fingerprint',
    'fits',
    'fuse',
    'has_autocast',
    'layout_of',
    'looked_on',
    'norm_fuse',
    'observed',
    'overridden',
    'packed',
    'packed_transform',
    'plain_only',
    'scconv',
    'scconv_runs_on',
    'split_channels',
    'sru',
    'sru_squeeze',
    'transform_fuse',
    'transformed',
]
