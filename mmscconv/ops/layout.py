"""The two memory layouts that the kernels read: NCHW and channels last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layout_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of (N, C, H, W), or the closer of the two for slices and permutations."""
    innermost = x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last if innermost and x.shape[2] * x.shape[3] > 1 else torch.contiguous_format


def with_precision_of(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x`` in the dtype in which the joined kernels compute, that of ``weight`` if it is the more exact one."""
    return x.to(torch.promote_types(x.dtype, weight.dtype))


def as_dense(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return ``x`` dense in ``layout``; ``x`` itself if it is."""
    return x.contiguous(memory_format=layout)


def as_rows(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return ``x`` with dense rows; ``x`` itself if it is dense or a slice of a dense tensor's channels.

    A row is one position in channels last, one channel in NCHW; rows follow each
    other at a constant distance.
    """
    _, c, h, w = x.shape
    if layout is torch.channels_last:
        has_rows = (c == 1 or x.stride(1) == 1) and (1 in (h, w) or x.stride(2) == w * x.stride(3))
    else:
        has_rows = x.stride(3) == 1 and x.stride(2) == w and x.stride(1) == h * w
    return x if has_rows else as_dense(x, layout)


def row_stride(x: Tensor, layout: torch.memory_format) -> int:
    """Return the distance between the rows of a result of :func:`as_rows`."""
    if layout is not torch.channels_last:
        return x.stride(1)
    return x.stride(3) if x.shape[3] > 1 else x.stride(2)  # the stride of an axis of size 1 means nothing


def empty(
    *shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Return an uninitialized CPU tensor for a kernel to write into, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=dtype, device='cpu', memory_format=layout)


def empty_channels_last(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialized tensor in channels last, as the channels-last ops return maps."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def empty_like_dense(x: Tensor) -> Tensor:
    """Return an uninitialized tensor of the shape and dtype of ``x`` in its layout, without gaps."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
