"""The arithmetic of the layers that has more than one implementation: plain PyTorch beside compiled kernels."""

from mmscconv.ops.backend import BACKENDS, check_backend, choose_backend, plain_only
from mmscconv.ops.fuse import fuse
from mmscconv.ops.sru import logit, sru

__all__ = ['BACKENDS', 'check_backend', 'choose_backend', 'fuse', 'logit', 'plain_only', 'sru']
