"""Inputs for the kernels of a backend, and how far from float64 they may be.

Without a CUDA device, Triton's kernels are interpreted on the CPU, in a process of their own.
"""

import pytest
import torch

from mmscconv.ops.backend import triton_unavailable

TRITON = [
    pytest.mark.skipif(triton_unavailable() is not None, reason=str(triton_unavailable())),
    *([] if torch.cuda.is_available() else [pytest.mark.apart(TRITON_INTERPRET='1')]),
]
LAYOUTS = ('nchw', 'channels_last', 'sliced', 'sliced_channels_last', 'strided', 'expanded', 'permuted')


def device_of(backend):
    return 'cuda' if backend == 'triton' and torch.cuda.is_available() else 'cpu'


def make(backend, shape, layout='nchw', dtype=torch.float32, mean=0.3, std=1.0):
    """Random values in a layout."""
    n, c, h, w = shape

    def values(*size):
        return (torch.randn(size, device=device_of(backend)) * std + mean).to(dtype)

    if layout == 'nchw':
        return values(*shape)
    if layout == 'channels_last':
        return values(*shape).contiguous(memory_format=torch.channels_last)
    if layout == 'sliced':
        return values(n, c + 5, h, w)[:, 3 : 3 + c]
    if layout == 'sliced_channels_last':
        return values(n, c + 5, h, w).contiguous(memory_format=torch.channels_last)[:, 3 : 3 + c]
    if layout == 'strided':
        return values(n, c, 2 * h, w + 1)[:, :, ::2, 1:]
    if layout == 'expanded':
        return values(n, c, h, 1).expand(shape)
    assert layout == 'permuted'
    return values(w, c, n, h).permute(2, 1, 3, 0)


def tolerance(dtype, scale=1.0):
    """Rounding to the dtype, which Triton's interpreter does by truncation where it is bf16; and fp32 before that."""
    return dict(rtol=max(torch.finfo(dtype).eps, 2e-5), atol=5e-6 * scale)


def doubled(*tensors):
    """Leaves in float64 with the values given."""
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]
