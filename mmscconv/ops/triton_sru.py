"""SRU, Eq. 1-4, in Triton: statistics, then gate and cross reconstruction; backward recomputes the gate from X.

scale and shift are GN's with the weights of Eq. 2 folded in: the logit of Eq. 3 is
scale * (x - mean) * rstd + shift. Channel c pairs with channel c + C/2; a tile of the
kernels that need both covers a block of the lower half and its partners.
"""

# ruff: noqa: ANN202  (Triton's helpers return what Triton infers)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmscconv.ops.layout import as_dense, empty_like_dense, layout_of
from mmscconv.ops.triton_tiles import MAPPED, REDUCED, inner_aligned, places, sizes, tile_of, tiling, values_at

ENTRIES = 1024  # partial results that a program combines at a time
FREE = ['channels', 'positions', 'half', 'chunk_positions']  # no variant of a kernel for their values


@triton.jit(do_not_specialize=FREE)
def _moments(
    x: tl.tensor, means: tl.tensor, squares: tl.tensor, channels: int, positions: int, channels_last: tl.constexpr,
    align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Each tile's mean and sum of squared deviations per channel, into (N, chunks, C)."""
    channels, positions = inner_aligned(channels, positions, channels_last, align)
    sample, chunk, c, p, inside = tile_of(channels, positions, block_c, block_p, False)
    values = values_at(x, places(sample, c, p, channels, positions, channels_last), inside)
    mean = tl.sum(values, 1) / tl.sum((p < positions).to(tl.float32), 0)
    deviation = tl.where(inside, values - mean[:, None], 0.0)
    tl.store(means + chunk * channels + c, mean, mask=c < channels)
    tl.store(squares + chunk * channels + c, tl.sum(deviation * deviation, 1), mask=c < channels)


@triton.jit
def _entries(
    start: int, sample: tl.tensor, group: tl.tensor, channels: int, per_group: tl.constexpr, chunks: int,
    entries: tl.constexpr,
):  # fmt: skip
    """Some of a group's partial results: which there are, their chunks and channels, and where they lie."""
    entry = start + tl.arange(0, entries)
    chunk, c = entry // per_group, group * per_group + entry % per_group
    return chunk < chunks, chunk, c, (sample * chunks + chunk) * channels + c


@triton.jit(do_not_specialize=FREE)
def _finish_moments(
    means: tl.tensor, squares: tl.tensor, mean: tl.tensor, rstd: tl.tensor, channels: int, positions: int,
    per_group: tl.constexpr, count: float, eps: float, chunk_positions: int, entries: tl.constexpr,
):  # fmt: skip
    """Combine a group's partial moments, relative to the first mean for what a large one would take from the sum."""
    groups = channels // per_group
    sample, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    chunks = tl.cdiv(positions, chunk_positions)
    total = chunks * per_group
    first = tl.load(means + sample * chunks * channels + group * per_group)
    shifted = tl.zeros([entries], tl.float32)
    for start in range(0, total, entries):
        inside, chunk, _, at = _entries(start, sample, group, channels, per_group, chunks, entries)
        weight = tl.minimum(positions - chunk * chunk_positions, chunk_positions).to(tl.float32)
        shifted += tl.where(inside, weight * (tl.load(means + at, mask=inside, other=0.0) - first), 0.0)
    shift = tl.sum(shifted, 0) / count
    square = tl.zeros([entries], tl.float32)
    for start in range(0, total, entries):
        inside, chunk, _, at = _entries(start, sample, group, channels, per_group, chunks, entries)
        weight = tl.minimum(positions - chunk * chunk_positions, chunk_positions).to(tl.float32)
        deviation = tl.load(means + at, mask=inside, other=0.0) - first - shift
        within = tl.load(squares + at, mask=inside, other=0.0)
        square += tl.where(inside, within + weight * deviation * deviation, 0.0)
    tl.store(mean + tl.program_id(0), first + shift)
    tl.store(rstd + tl.program_id(0), 1.0 / tl.sqrt_rn(tl.sum(square, 0) / count + eps))


@triton.jit
def _norm(
    mean: tl.tensor, rstd: tl.tensor, scale: tl.tensor, shift: tl.tensor, sample: tl.tensor, c: tl.tensor,
    inside: tl.tensor, channels: int, per_group: tl.constexpr,
):  # fmt: skip
    """(block_c, 1) each: where c's group lies, mean, rstd, slope and shift; the logit is (x - mean) * slope + shift."""
    at = sample * (channels // per_group) + c // per_group
    center = tl.load(mean + at, mask=inside, other=0.0)[:, None]
    spread = tl.load(rstd + at, mask=inside, other=0.0)[:, None]
    slope = tl.load(scale + c, mask=inside, other=0.0)[:, None] * spread
    return at[:, None], center, spread, slope, tl.load(shift + c, mask=inside, other=0.0)[:, None]


@triton.jit
def _pairs(
    half: int, positions: int, channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr,
    block_p: tl.constexpr, from_end: tl.constexpr,
):  # fmt: skip
    """As tile_of does for the lower half of the channels; and where its values and their partners lie."""
    half, positions = inner_aligned(half, positions, channels_last, align)
    sample, chunk, c, p, inside = tile_of(half, positions, block_c, block_p, from_end)
    near = places(sample, c, p, 2 * half, positions, channels_last)
    apart = half if channels_last else half.to(tl.int64) * positions
    return sample, chunk, c, inside, near, near + apart


@triton.jit
def _split(x: tl.tensor, logit: tl.tensor, threshold: float, hard: tl.constexpr):
    """What of x stays in its half, and what crosses to the other."""
    below = x if hard else x * tl.sigmoid(logit)
    return tl.where(logit > threshold, x, 0.0 if hard else below), tl.where(logit > threshold, 0.0, below)


@triton.jit(do_not_specialize=FREE)
def _gate(
    x: tl.tensor, scale: tl.tensor, shift: tl.tensor, mean: tl.tensor, rstd: tl.tensor, out: tl.tensor, half: int,
    positions: int, per_group: tl.constexpr, threshold: float, hard: tl.constexpr, channels_last: tl.constexpr,
    align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    sample, _, c, inside, near, far = _pairs(half, positions, channels_last, align, block_c, block_p, True)
    a, b = values_at(x, near, inside), values_at(x, far, inside)
    _, center, _, slope, offset = _norm(mean, rstd, scale, shift, sample, c, c < half, 2 * half, per_group)
    kept_a, crossing_a = _split(a, (a - center) * slope + offset, threshold, hard)
    _, center, _, slope, offset = _norm(mean, rstd, scale, shift, sample, c + half, c < half, 2 * half, per_group)
    kept_b, crossing_b = _split(b, (b - center) * slope + offset, threshold, hard)
    tl.store(out + near, kept_a + crossing_b, mask=inside)
    tl.store(out + far, kept_b + crossing_a, mask=inside)


@triton.jit
def _logit_grad(x: tl.tensor, logit: tl.tensor, upstream: tl.tensor, threshold: float):
    """dl, the gradient of the logit: only values that the soft gate splits have one."""
    w = tl.sigmoid(logit)
    return tl.where(logit > threshold, 0.0, w * (1.0 - w) * x * upstream)


@triton.jit
def _store_grad_sums(
    x: tl.tensor, upstream: tl.tensor, mean: tl.tensor, rstd: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    sums: tl.tensor, products: tl.tensor, sample: tl.tensor, chunk: tl.tensor, c: tl.tensor, inside: tl.tensor,
    channels: int, per_group: tl.constexpr, threshold: float,
):  # fmt: skip
    _, center, spread, slope, offset = _norm(mean, rstd, scale, shift, sample, c, inside, channels, per_group)
    dl = _logit_grad(x, (x - center) * slope + offset, upstream, threshold)
    tl.store(sums + chunk * channels + c, tl.sum(dl, 1), mask=inside)
    tl.store(products + chunk * channels + c, tl.sum(dl * ((x - center) * spread), 1), mask=inside)


@triton.jit(do_not_specialize=FREE)
def _grad_sums(
    grad: tl.tensor, x: tl.tensor, scale: tl.tensor, shift: tl.tensor, mean: tl.tensor, rstd: tl.tensor,
    sums: tl.tensor, products: tl.tensor, half: int, positions: int, per_group: tl.constexpr, threshold: float,
    channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Each tile's sums of dl and of dl * xhat per channel, into (N, chunks, C)."""
    sample, chunk, c, inside, near, far = _pairs(half, positions, channels_last, align, block_c, block_p, False)
    a, b = values_at(x, near, inside), values_at(x, far, inside)
    upstream = values_at(grad, near, inside) + values_at(grad, far, inside)
    _store_grad_sums(
        a,
        upstream,
        mean,
        rstd,
        scale,
        shift,
        sums,
        products,
        sample,
        chunk,
        c,
        c < half,
        2 * half,
        per_group,
        threshold,
    )
    _store_grad_sums(
        b, upstream, mean, rstd, scale, shift, sums, products, sample, chunk, c + half, c < half, 2 * half, per_group,
        threshold,
    )  # fmt: skip


@triton.jit(do_not_specialize=FREE)
def _finish_grad_sums(
    sums: tl.tensor, products: tl.tensor, scale: tl.tensor, mean_dl: tl.tensor, mean_dlx: tl.tensor, channels: int,
    positions: int, per_group: tl.constexpr, count: float, chunk_positions: int, entries: tl.constexpr,
):  # fmt: skip
    """Per group, the means of dl * scale and of dl * scale * xhat."""
    groups = channels // per_group
    sample, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    chunks = tl.cdiv(positions, chunk_positions)
    dl, dlx = tl.zeros([entries], tl.float32), tl.zeros([entries], tl.float32)
    for start in range(0, chunks * per_group, entries):
        inside, _, c, at = _entries(start, sample, group, channels, per_group, chunks, entries)
        weight = tl.load(scale + c, mask=inside, other=0.0)
        dl += weight * tl.load(sums + at, mask=inside, other=0.0)
        dlx += weight * tl.load(products + at, mask=inside, other=0.0)
    tl.store(mean_dl + tl.program_id(0), tl.sum(dl, 0) / count)
    tl.store(mean_dlx + tl.program_id(0), tl.sum(dlx, 0) / count)


@triton.jit
def _input_grad(
    x: tl.tensor, own: tl.tensor, other: tl.tensor, mean: tl.tensor, rstd: tl.tensor, scale: tl.tensor,
    shift: tl.tensor, mean_dl: tl.tensor, mean_dlx: tl.tensor, sample: tl.tensor, c: tl.tensor, inside: tl.tensor,
    channels: int, per_group: tl.constexpr, threshold: float, hard: tl.constexpr,
):  # fmt: skip
    """What reaches x directly through the gate, and through GN."""
    at, center, spread, slope, offset = _norm(mean, rstd, scale, shift, sample, c, inside, channels, per_group)
    logit = (x - center) * slope + offset
    if hard:
        result = tl.where(logit > threshold, own, other)
    else:
        direct = tl.where(logit > threshold, own, tl.sigmoid(logit) * (own + other))
        through = tl.load(mean_dl + at, mask=inside[:, None], other=0.0)
        through += (x - center) * spread * tl.load(mean_dlx + at, mask=inside[:, None], other=0.0)
        result = direct + _logit_grad(x, logit, own + other, threshold) * slope - spread * through
    return result


@triton.jit(do_not_specialize=FREE)
def _input_grads(
    grad: tl.tensor, x: tl.tensor, scale: tl.tensor, shift: tl.tensor, mean: tl.tensor, rstd: tl.tensor,
    mean_dl: tl.tensor, mean_dlx: tl.tensor, out: tl.tensor, half: int, positions: int, per_group: tl.constexpr,
    threshold: float, hard: tl.constexpr, channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr,
    block_p: tl.constexpr,
):  # fmt: skip
    sample, _, c, inside, near, far = _pairs(half, positions, channels_last, align, block_c, block_p, True)
    a, b = values_at(x, near, inside), values_at(x, far, inside)
    grad_a, grad_b = values_at(grad, near, inside), values_at(grad, far, inside)
    result = _input_grad(
        a, grad_a, grad_b, mean, rstd, scale, shift, mean_dl, mean_dlx, sample, c, c < half, 2 * half, per_group,
        threshold, hard,
    )  # fmt: skip
    tl.store(out + near, result, mask=inside)
    result = _input_grad(
        b, grad_b, grad_a, mean, rstd, scale, shift, mean_dl, mean_dlx, sample, c + half, c < half, 2 * half, per_group,
        threshold, hard,
    )  # fmt: skip
    tl.store(out + far, result, mask=inside)


def sru_forward(
    x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    layout = layout_of(x)
    values, scale, shift = as_dense(x, layout), scale.contiguous(), shift.contiguous()
    n, c, p = sizes(x)
    with torch.cuda.device_of(x):
        tiles = tiling(n, c, p, layout, REDUCED)
        means, squares = (scale.new_empty(n, tiles.chunks, c) for _ in range(2))
        _moments[tiles.grid](values, means, squares, c, p, **tiles.constants(layout))
        mean, rstd = (scale.new_empty(n, num_groups) for _ in range(2))
        per_group = c // num_groups
        _finish_moments[(mean.numel(),)](
            means, squares, mean, rstd, c, p, per_group, float(per_group * p), eps, tiles.block_p,
            entries=_entries_at_once(per_group * tiles.chunks),
        )  # fmt: skip
        tiles = tiling(n, c // 2, p, layout, MAPPED)
        out = empty_like_dense(x)
        _gate[tiles.grid](
            values, scale, shift, mean, rstd, out, c // 2, p, per_group, threshold, hard, **tiles.constants(layout)
        )
    return out, mean, rstd


def sru_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    layout = layout_of(x)
    values, upstream, scale, shift = as_dense(x, layout), as_dense(grad, layout), scale.contiguous(), shift.contiguous()
    n, c, p = sizes(x)
    per_group = c // mean.shape[1]
    with torch.cuda.device_of(x):
        if hard:
            grad_scale, grad_shift, mean_dl, mean_dlx = torch.zeros_like(scale), torch.zeros_like(shift), None, None
        else:
            # Half as large as elsewhere: there are four operands.
            tiles = tiling(n, c // 2, p, layout, REDUCED // 2)
            sums, products = (scale.new_empty(n, tiles.chunks, c) for _ in range(2))
            _grad_sums[tiles.grid](
                upstream, values, scale, shift, mean, rstd, sums, products, c // 2, p, per_group, threshold,
                **tiles.constants(layout),
            )  # fmt: skip
            mean_dl, mean_dlx = torch.empty_like(mean), torch.empty_like(mean)
            _finish_grad_sums[(mean.numel(),)](
                sums, products, scale, mean_dl, mean_dlx, c, p, per_group, float(per_group * p), tiles.block_p,
                entries=_entries_at_once(per_group * tiles.chunks),
            )  # fmt: skip
            grad_scale, grad_shift = products.sum((0, 1)), sums.sum((0, 1))
        tiles = tiling(n, c // 2, p, layout, MAPPED)
        grad_x = empty_like_dense(x)
        _input_grads[tiles.grid](
            upstream, values, scale, shift, mean, rstd, mean_dl, mean_dlx, grad_x, c // 2, p, per_group, threshold, hard,
            **tiles.constants(layout),
        )  # fmt: skip
    return grad_x, grad_scale, grad_shift


def _entries_at_once(total: int) -> int:
    return min(ENTRIES, triton.next_power_of_2(total))
