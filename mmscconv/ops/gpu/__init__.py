"""The kernels for CUDA devices, written in Triton: SRU and fuse, under the names that :mod:`mmscconv.ops.native` has.

The joined kernels of the CPU have no counterpart here. Dense maps in NCHW or channels
last are read without a copy, in fp32, bf16 or fp16; sums are in fp32. No atomics:
programs write partial sums, which are added up in a fixed
order, so that the same input gives the same bits.
"""

from mmscconv.ops.gpu.fuse import fuse_backward, fuse_forward
from mmscconv.ops.gpu.sru import sru_backward, sru_forward

__all__ = ['fuse_backward', 'fuse_forward', 'sru_backward', 'sru_forward']
