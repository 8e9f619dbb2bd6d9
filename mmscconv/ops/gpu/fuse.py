"""CRU's fuse, Eq. 7-9, in Triton: Y1 = y1 + y1_addend and Y2 = cat(pwc2_out, x_low), without those that are None.

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
from mmscconv.ops.layout import as_dense, as_rows, empty_like_dense, layout_of, row_stride

FREE = ['channels', 'positions', 'pwc2_channels', 'x_low_sample', 'x_low_row', 'chunks']  # as in sru_kernels


@triton.jit
def _lower(
    pwc2_out: tl.tensor, x_low: tl.tensor, sample: tl.tensor, c: tl.tensor, p: tl.tensor, inside: tl.tensor,
    positions: int, pwc2_channels: int, x_low_sample: int, x_low_row: int, channels_last: tl.constexpr,
    align: tl.constexpr,
):  # fmt: skip
    """Y2's tile."""
    pwc2_channels, _ = inner_aligned(pwc2_channels, positions, channels_last, align)
    at = sample * aligned(x_low_sample, align)
    at += distances(c - pwc2_channels, p, aligned(x_low_row, align), channels_last)
    values = values_at(x_low, at, inside & (c >= pwc2_channels)[:, None])
    if pwc2_out is not None:
        # Each value comes from one of the two and is 0 in the other.
        at = places(sample, c, p, pwc2_channels, positions, channels_last)
        values += values_at(pwc2_out, at, inside & (c < pwc2_channels)[:, None])
    return values


@triton.jit
def _upper(y1: tl.tensor, y1_addend: tl.tensor, at: tl.tensor, inside: tl.tensor):
    """Y1's tile."""
    values = values_at(y1, at, inside)
    if y1_addend is not None:
        values += values_at(y1_addend, at, inside)
    return values


@triton.jit(do_not_specialize=FREE)
def _sums(
    y1: tl.tensor, y1_addend: tl.tensor, factor: tl.tensor, pwc2_out: tl.tensor, x_low: tl.tensor, out: tl.tensor,
    channels: int, positions: int, pwc2_channels: int, x_low_sample: tl.int64, x_low_row: tl.int64,
    channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Each tile's sums of [factor *] (y1 [+ y1_addend] - Y2) per channel, into (N, chunks, C)."""
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    sample, chunk, c, p, inside = tile_of(channels, positions, block_c, block_p, False)
    at = places(sample, c, p, channels, positions, channels_last)
    y2 = _lower(
        pwc2_out, x_low, sample, c, p, inside, positions, pwc2_channels, x_low_sample, x_low_row, channels_last, align
    )
    difference = _upper(y1, y1_addend, at, inside) - y2
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
    y1: tl.tensor, y1_addend: tl.tensor, pwc2_out: tl.tensor, x_low: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    beta1: tl.tensor, out: tl.tensor, channels: int, positions: int, pwc2_channels: int, x_low_sample: tl.int64,
    x_low_row: tl.int64, channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    sample, _, c, p, inside = tile_of(channels, positions, block_c, block_p, True)
    at = places(sample, c, p, channels, positions, channels_last)
    y2 = _lower(
        pwc2_out, x_low, sample, c, p, inside, positions, pwc2_channels, x_low_sample, x_low_row, channels_last, align
    )
    beta = tl.load(beta1 + sample * channels + c, mask=c < channels, other=0.0)[:, None]
    z = y2 + beta * (_upper(y1, y1_addend, at, inside) - y2)
    if scale is not None:
        z *= tl.load(scale + c, mask=c < channels, other=0.0)[:, None]
        z += tl.load(shift + c, mask=c < channels, other=0.0)[:, None]
    tl.store(out + at, z, mask=inside)


@triton.jit(do_not_specialize=FREE)
def _input_grads(
    grad: tl.tensor, products: tl.tensor, beta1: tl.tensor, grad1: tl.tensor, grad_pwc2_out: tl.tensor,
    grad_x_low: tl.tensor, channels: int, positions: int, pwc2_channels: int, is_output: tl.constexpr,
    channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """grad1 = beta1 * grad + pull, grad2 = beta2 * grad - pull, where pull is Y1's gradient through its mean."""
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    pwc2_channels, _ = inner_aligned(pwc2_channels, positions, channels_last, align)
    sample, _, c, p, inside = tile_of(channels, positions, block_c, block_p, True)
    at = places(sample, c, p, channels, positions, channels_last)
    upstream = values_at(grad, at, inside)
    beta = tl.load(beta1 + sample * channels + c, mask=c < channels, other=0.0)[:, None]
    pull = tl.load(products + sample * channels + c, mask=c < channels, other=0.0)[:, None] * (1.0 - beta)
    if not is_output:
        pull *= beta
    part = beta * upstream + pull
    tl.store(grad1 + at, part, mask=inside)
    at = places(sample, c, p, pwc2_channels, positions, channels_last)
    tl.store(grad_pwc2_out + at, upstream - part, mask=inside & (c < pwc2_channels)[:, None])
    at = places(sample, c - pwc2_channels, p, channels - pwc2_channels, positions, channels_last)
    tl.store(grad_x_low + at, upstream - part, mask=inside & (c >= pwc2_channels)[:, None])


class _Y2(NamedTuple):
    """The parts of Y2 as the kernels read them."""

    pwc2_out: Tensor | None
    x_low: Tensor
    pwc2_channels: int
    x_low_sample: int
    x_low_row: int

    @property
    def extents(self) -> tuple[int, int, int]:
        """Arguments of the kernels, which also limit the alignment of their loads."""
        return self[2:]


def _y2_of(x_low: Tensor, pwc2_out: Tensor | None, channels: int, layout: torch.memory_format) -> _Y2:
    x_low, pwc2_out = as_rows(x_low, layout), None if pwc2_out is None else as_dense(pwc2_out, layout)
    return _Y2(pwc2_out, x_low, channels - x_low.shape[1], x_low.stride(0), row_stride(x_low, layout))


def fuse_forward(
    y1: Tensor,
    x_low: Tensor,
    y1_addend: Tensor | None,
    pwc2_out: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    check_fuse(y1, x_low, y1_addend, pwc2_out, scale, shift)
    layout = layout_of(y1)
    n, c, p = sizes(y1)
    y1_, y1_addend_ = as_dense(y1, layout), None if y1_addend is None else as_dense(y1_addend, layout)
    scale, shift = (None if t is None else t.contiguous() for t in (scale, shift))
    y2 = _y2_of(x_low, pwc2_out, c, layout)
    with torch.cuda.device_of(y1):
        beta1 = _means(y1_, y1_addend_, None, y2, layout, REDUCED, sigmoid=True)
        tiles = tiling(n, c, p, layout, MAPPED)
        out = y1_ if overwrite else empty_like_dense(y1)  # a program reads its tile before it writes
        _lerp[tiles.grid](
            y1_, y1_addend_, y2.pwc2_out, y2.x_low, scale, shift, beta1, out, c, p, *y2.extents,
            **tiles.constants(layout, *y2.extents),
        )  # fmt: skip
    return out, beta1


def fuse_backward(
    grad: Tensor, reference: Tensor, is_output: bool, x_low: Tensor, pwc2_out: Tensor | None, beta1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    check_fuse_backward(grad, reference, x_low, pwc2_out, beta1)
    layout = layout_of(reference)
    n, c, p = sizes(reference)
    upstream, reference_ = as_dense(grad, layout), as_dense(reference, layout)
    y2 = _y2_of(x_low, pwc2_out, c, layout)
    grad1 = empty_like_dense(reference)
    grad_pwc2_out, grad_x_low = (
        torch.empty(
            n, channels, *grad.shape[2:], dtype=grad.dtype, device=grad.device, memory_format=layout
        ) for channels in (y2.pwc2_channels, c - y2.pwc2_channels)
    )  # fmt: skip
    with torch.cuda.device_of(grad):
        # Tiles half as large as elsewhere: there is one more operand.
        products = _means(reference_, None, upstream, y2, layout, REDUCED // 2, sigmoid=False)
        tiles = tiling(n, c, p, layout, MAPPED)
        _input_grads[tiles.grid](
            upstream, products, beta1, grad1, grad_pwc2_out, grad_x_low, c, p, y2.pwc2_channels, is_output,
            **tiles.constants(layout, y2.pwc2_channels),
        )  # fmt: skip
    return grad1, grad_pwc2_out, grad_x_low


def _means(
    y1: Tensor, y1_addend: Tensor | None, factor: Tensor | None, y2: _Y2, layout: torch.memory_format, values: int,
    sigmoid: bool,
) -> Tensor:  # fmt: skip
    """Return (N, C), fp32: the means of [factor *] (y1 [+ y1_addend] - Y2) over the positions, or their sigmoids."""
    n, c, p = sizes(y1)
    tiles = tiling(n, c, p, layout, values)
    sums = empty(y1, n, tiles.chunks, c)
    _sums[tiles.grid](
        y1, y1_addend, factor, y2.pwc2_out, y2.x_low, sums, c, p, *y2.extents, **tiles.constants(layout, *y2.extents)
    )
    out = empty(y1, n, c)
    block_c, block_chunks = min(32, triton.next_power_of_2(c)), min(128, triton.next_power_of_2(tiles.chunks))
    _finish_sums[(n * triton.cdiv(c, block_c),)](
        sums, out, c, tiles.chunks, float(p), sigmoid, block_c=block_c, block_chunks=block_chunks
    )
    return out
