"""CRU's fuse, Eq. 7-9, in Triton: Y1 = first + second (second may be None) and Y2 = cat(made, low) (made may be None).

Eq. 8's softmax over two values is a sigmoid of their difference, so one mean per channel is enough:
beta1 = sigmoid(mean(Y1 - Y2)), Z = Y2 + beta1 * (Y1 - Y2).
"""

# ruff: noqa: ANN202  (Triton's helpers return what Triton infers)
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmscconv.ops.fitting import check_fuse, check_fuse_backward
from mmscconv.ops.gpu.tiles import (
    MAPPED,
    REDUCED,
    aligned,
    distances,
    empty,
    inner_aligned,
    places,
    sizes,
    tile_of,
    tiling,
    values_at,
)
from mmscconv.ops.layout import as_dense, as_rows, empty_like_dense, layout_of

FREE = ['channels', 'positions', 'made_channels', 'low_sample', 'low_row', 'chunks']  # as in sru_kernels


@triton.jit
def _lower(
    made: tl.tensor, low: tl.tensor, sample: tl.tensor, c: tl.tensor, p: tl.tensor, inside: tl.tensor, positions: int,
    made_channels: int, low_sample: int, low_row: int, channels_last: tl.constexpr, align: tl.constexpr,
):  # fmt: skip
    """Y2's tile."""
    made_channels, _ = inner_aligned(made_channels, positions, channels_last, align)
    at = sample * aligned(low_sample, align) + distances(c - made_channels, p, aligned(low_row, align), channels_last)
    values = values_at(low, at, inside & (c >= made_channels)[:, None])
    if made is not None:
        # Each value comes from one of the two and is 0 in the other.
        at = places(sample, c, p, made_channels, positions, channels_last)
        values += values_at(made, at, inside & (c < made_channels)[:, None])
    return values


@triton.jit
def _upper(first: tl.tensor, second: tl.tensor, at: tl.tensor, inside: tl.tensor):
    """Y1's tile."""
    values = values_at(first, at, inside)
    if second is not None:
        values += values_at(second, at, inside)
    return values


@triton.jit(do_not_specialize=FREE)
def _sums(
    first: tl.tensor, second: tl.tensor, factor: tl.tensor, made: tl.tensor, low: tl.tensor, out: tl.tensor,
    channels: int, positions: int, made_channels: int, low_sample: tl.int64, low_row: tl.int64,
    channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Each tile's sums of [factor *] (first [+ second] - Y2) per channel, into (N, chunks, C)."""
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    sample, chunk, c, p, inside = tile_of(channels, positions, block_c, block_p, False)
    at = places(sample, c, p, channels, positions, channels_last)
    y2 = _lower(made, low, sample, c, p, inside, positions, made_channels, low_sample, low_row, channels_last, align)
    difference = _upper(first, second, at, inside) - y2
    if factor is not None:
        difference *= values_at(factor, at, inside)
    tl.store(out + chunk * channels + c, tl.sum(difference, 1), mask=c < channels)


@triton.jit(do_not_specialize=FREE)
def _finish_sums(
    sums: tl.tensor, out: tl.tensor, channels: int, chunks: int, count: float, sigmoid: tl.constexpr,
    block_c: tl.constexpr, block_chunks: tl.constexpr,
):  # fmt: skip
    """Means over all chunks, or their sigmoids, into (N, C)."""
    blocks = tl.cdiv(channels, block_c)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * block_c + tl.arange(0, block_c)
    total = tl.zeros([block_chunks, block_c], tl.float32)
    for start in range(0, chunks, block_chunks):
        k = start + tl.arange(0, block_chunks)
        at = (sample * chunks + k)[:, None] * channels + c[None, :]
        total += tl.load(sums + at, mask=(k < chunks)[:, None] & (c < channels)[None, :], other=0.0)
    mean = tl.sum(total, 0) / count
    tl.store(out + sample * channels + c, tl.sigmoid(mean) if sigmoid else mean, mask=c < channels)


@triton.jit(do_not_specialize=FREE)
def _lerp(
    first: tl.tensor, second: tl.tensor, made: tl.tensor, low: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    beta1: tl.tensor, out: tl.tensor, channels: int, positions: int, made_channels: int, low_sample: tl.int64,
    low_row: tl.int64, channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    sample, _, c, p, inside = tile_of(channels, positions, block_c, block_p, True)
    at = places(sample, c, p, channels, positions, channels_last)
    y2 = _lower(made, low, sample, c, p, inside, positions, made_channels, low_sample, low_row, channels_last, align)
    beta = tl.load(beta1 + sample * channels + c, mask=c < channels, other=0.0)[:, None]
    z = y2 + beta * (_upper(first, second, at, inside) - y2)
    if scale is not None:
        z *= tl.load(scale + c, mask=c < channels, other=0.0)[:, None]
        z += tl.load(shift + c, mask=c < channels, other=0.0)[:, None]
    tl.store(out + at, z, mask=inside)


@triton.jit(do_not_specialize=FREE)
def _input_grads(
    grad: tl.tensor, products: tl.tensor, beta1: tl.tensor, grad1: tl.tensor, grad_made: tl.tensor, grad_low: tl.tensor,
    channels: int, positions: int, made_channels: int, is_output: tl.constexpr, channels_last: tl.constexpr,
    align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """grad1 = beta1 * grad + pull, grad2 = beta2 * grad - pull, where pull is Y1's gradient through its mean."""
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    made_channels, _ = inner_aligned(made_channels, positions, channels_last, align)
    sample, _, c, p, inside = tile_of(channels, positions, block_c, block_p, True)
    at = places(sample, c, p, channels, positions, channels_last)
    upstream = values_at(grad, at, inside)
    beta = tl.load(beta1 + sample * channels + c, mask=c < channels, other=0.0)[:, None]
    pull = tl.load(products + sample * channels + c, mask=c < channels, other=0.0)[:, None] * (1.0 - beta)
    if not is_output:
        pull *= beta
    part = beta * upstream + pull
    tl.store(grad1 + at, part, mask=inside)
    at = places(sample, c, p, made_channels, positions, channels_last)
    tl.store(grad_made + at, upstream - part, mask=inside & (c < made_channels)[:, None])
    at = places(sample, c - made_channels, p, channels - made_channels, positions, channels_last)
    tl.store(grad_low + at, upstream - part, mask=inside & (c >= made_channels)[:, None])


class _Y2(NamedTuple):
    """The parts of Y2 as the kernels read them."""

    made: Tensor | None
    low: Tensor
    made_channels: int
    low_sample: int
    low_row: int

    @property
    def extents(self) -> tuple[int, int, int]:
        """Arguments of the kernels, which also limit the alignment of their loads."""
        return self[2:]


def _y2_of(low: Tensor, made: Tensor | None, channels: int, layout: torch.memory_format) -> _Y2:
    low, made = as_rows(low, layout), None if made is None else as_dense(made, layout)
    # The stride of an axis of size 1 means nothing.
    along_width = 3 if low.shape[3] > 1 else 2
    row = low.stride(along_width if layout is torch.channels_last else 1)
    return _Y2(made, low, channels - low.shape[1], low.stride(0), row)


def fuse_forward(
    first: Tensor,
    low: Tensor,
    second: Tensor | None,
    made: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    check_fuse(first, low, second, made, scale, shift)
    layout = layout_of(first)
    n, c, p = sizes(first)
    first_, second_ = as_dense(first, layout), None if second is None else as_dense(second, layout)
    scale, shift = (None if t is None else t.contiguous() for t in (scale, shift))
    y2 = _y2_of(low, made, c, layout)
    with torch.cuda.device_of(first):
        beta1 = _means(first_, second_, None, y2, layout, REDUCED, sigmoid=True)
        tiles = tiling(n, c, p, layout, MAPPED)
        out = first_ if overwrite else empty_like_dense(first)  # a program reads its tile before it writes
        _lerp[tiles.grid](
            first_, second_, y2.made, y2.low, scale, shift, beta1, out, c, p, *y2.extents,
            **tiles.constants(layout, *y2.extents),
        )  # fmt: skip
    return out, beta1


def fuse_backward(
    grad: Tensor, reference: Tensor, is_output: bool, low: Tensor, made: Tensor | None, beta1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    check_fuse_backward(grad, reference, low, made, beta1)
    layout = layout_of(reference)
    n, c, p = sizes(reference)
    upstream, reference_ = as_dense(grad, layout), as_dense(reference, layout)
    y2 = _y2_of(low, made, c, layout)
    grad1 = empty_like_dense(reference)
    grad_made, grad_low = (
        torch.empty(
            n, channels, *grad.shape[2:], dtype=grad.dtype, device=grad.device, memory_format=layout
        ) for channels in (y2.made_channels, c - y2.made_channels)
    )  # fmt: skip
    with torch.cuda.device_of(grad):
        # Tiles half as large as elsewhere: there is one more operand.
        products = _means(reference_, None, upstream, y2, layout, REDUCED // 2, sigmoid=False)
        tiles = tiling(n, c, p, layout, MAPPED)
        _input_grads[tiles.grid](
            upstream, products, beta1, grad1, grad_made, grad_low, c, p, y2.made_channels, is_output,
            **tiles.constants(layout, y2.made_channels),
        )  # fmt: skip
    return grad1, grad_made, grad_low


def _means(
    first: Tensor, second: Tensor | None, factor: Tensor | None, y2: _Y2, layout: torch.memory_format, values: int,
    sigmoid: bool,
) -> Tensor:  # fmt: skip
    """Return (N, C), fp32: the means of [factor *] (first [+ second] - Y2) over the positions, or their sigmoids."""
    n, c, p = sizes(first)
    tiles = tiling(n, c, p, layout, values)
    sums = empty(first, n, tiles.chunks, c)
    _sums[tiles.grid](
        first, second, factor, y2.made, y2.low, sums, c, p, *y2.extents, **tiles.constants(layout, *y2.extents)
    )
    out = empty(first, n, c)
    block_c, block_chunks = min(32, triton.next_power_of_2(c)), min(128, triton.next_power_of_2(tiles.chunks))
    _finish_sums[(n * triton.cdiv(c, block_c),)](
        sums, out, c, tiles.chunks, float(p), sigmoid, block_c=block_c, block_chunks=block_chunks
    )
    return out
