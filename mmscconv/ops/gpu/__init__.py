"""The kernels for CUDA devices, written in Triton: the functions of :mod:`mmscconv.ops.native` under the same names.

They read fp32, bf16 or fp16 in NCHW or channels last, without a copy, and work in
fp32. No atomics: programs write partial sums, which are added up in a fixed
order, so that the same input gives the same bits.
"""

from mmscconv.ops.gpu.fuse import fuse_backward, fuse_forward
from mmscconv.ops.gpu.sru import sru_backward, sru_forward

__all__ = ['fuse_backward', 'fuse_forward', 'sru_backward', 'sru_forward']
