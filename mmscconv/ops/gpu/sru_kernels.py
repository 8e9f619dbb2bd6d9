"""SRU's Triton kernels, Eq. 1-4: statistics, then gate and cross reconstruction; backward recomputes the gate from X.

scale and shift are GN's with the weights of Eq. 2 folded in: the logit of Eq. 3 is
scale * (x - mean) * rstd + shift. Channel c pairs with channel c + C/2; a tile of the
kernels that need both covers a block of the lower half and its partners.
"""

# ruff: noqa: ANN201, ANN202  (Triton's helpers return what Triton infers)
from __future__ import annotations

import triton
import triton.language as tl

from mmscconv.ops.gpu.tiles import inner_aligned, places, sigmoid, tile_of, values_at

FREE = ['channels', 'positions', 'half', 'chunk_positions']  # their values do not select a variant of the kernel


@triton.jit(do_not_specialize=FREE)
def moments(
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
    """Some of a group's partial results: their mask, chunks, channels and offsets."""
    entry = start + tl.arange(0, entries)
    chunk, c = entry // per_group, group * per_group + entry % per_group
    return chunk < chunks, chunk, c, (sample * chunks + chunk) * channels + c


@triton.jit
def _store_for_channels(
    out: tl.tensor, sample: tl.tensor, group: tl.tensor, channels: int, per_group: tl.constexpr, value: tl.tensor,
    block: tl.constexpr,
):  # fmt: skip
    """Store a group's value for each of its channels: the passes over the maps then load it in runs."""
    k = tl.arange(0, block)
    tl.store(out + sample * channels + group * per_group + k, value + tl.zeros([block], tl.float32), mask=k < per_group)


@triton.jit(do_not_specialize=FREE)
def finish_moments(
    means: tl.tensor, squares: tl.tensor, mean: tl.tensor, rstd: tl.tensor, center_of: tl.tensor, spread_of: tl.tensor,
    channels: int, positions: int, per_group: tl.constexpr, count: float, eps: float, chunk_positions: int,
    entries: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Combine a group's partial moments, relative to the first mean: large means would cost the sum its precision."""
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
    spread = 1.0 / tl.sqrt_rn(tl.sum(square, 0) / count + eps)
    tl.store(mean + tl.program_id(0), first + shift)
    tl.store(rstd + tl.program_id(0), spread)
    _store_for_channels(center_of, sample, group, channels, per_group, first + shift, block)
    _store_for_channels(spread_of, sample, group, channels, per_group, spread, block)


@triton.jit
def _norm(
    center_of: tl.tensor, spread_of: tl.tensor, scale: tl.tensor, shift: tl.tensor, at: tl.tensor, c: tl.tensor,
    inside: tl.tensor,
):  # fmt: skip
    """(block_c, 1) each: mean, rstd, slope and shift of the channels; the logit is (x - mean) * slope + shift."""
    center = tl.load(center_of + at, mask=inside, other=0.0)[:, None]
    spread = tl.load(spread_of + at, mask=inside, other=0.0)[:, None]
    slope = tl.load(scale + c, mask=inside, other=0.0)[:, None] * spread
    return center, spread, slope, tl.load(shift + c, mask=inside, other=0.0)[:, None]


@triton.jit
def _pairs(
    half: tl.tensor, positions: tl.tensor, channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr,
    block_p: tl.constexpr, from_end: tl.constexpr,
):  # fmt: skip
    """A tile of the lower half of the channels and their partners.

    Returns half, channels of the lower half, their mask, the sample's offset in (N, C), the chunk's in (N, chunks, C),
    the offsets of the tile and of its partners, and the tile's mask.
    """
    half, positions = inner_aligned(half, positions, channels_last, align)
    sample, chunk, c, p, inside = tile_of(half, positions, block_c, block_p, from_end)
    near = places(sample, c, p, 2 * half, positions, channels_last)
    far = near + (half if channels_last else half.to(tl.int64) * positions)
    return half, c, c < half, sample * 2 * half, chunk * 2 * half, near, far, inside


@triton.jit
def _split(x: tl.tensor, logit: tl.tensor, threshold: float, hard: tl.constexpr):
    """The part of x that stays in its half, and the part that crosses to the other."""
    below = x if hard else x * sigmoid(logit)
    none = 0.0 * x  # a product, for infinity and NaN to stay seen
    return tl.where(logit > threshold, x, none if hard else below), tl.where(logit > threshold, none, below)


@triton.jit(do_not_specialize=FREE)
def gate(
    x: tl.tensor, scale: tl.tensor, shift: tl.tensor, center_of: tl.tensor, spread_of: tl.tensor, out: tl.tensor,
    half: int, positions: int, threshold: float, hard: tl.constexpr, channels_last: tl.constexpr, align: tl.constexpr,
    block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    half, c, exists, line, _, near, far, inside = _pairs(
        half, positions, channels_last, align, block_c, block_p, True
    )  # fmt: skip
    a, b = values_at(x, near, inside), values_at(x, far, inside)
    center, _, slope, offset = _norm(center_of, spread_of, scale, shift, line + c, c, exists)
    kept_a, crossing_a = _split(a, (a - center) * slope + offset, threshold, hard)
    c += half
    center, _, slope, offset = _norm(center_of, spread_of, scale, shift, line + c, c, exists)
    kept_b, crossing_b = _split(b, (b - center) * slope + offset, threshold, hard)
    tl.store(out + near, kept_a + crossing_b, mask=inside)
    tl.store(out + far, kept_b + crossing_a, mask=inside)


@triton.jit
def _store_grad_sums(
    x: tl.tensor, upstream: tl.tensor, center_of: tl.tensor, spread_of: tl.tensor, scale: tl.tensor, shift: tl.tensor,
    sums: tl.tensor, products: tl.tensor, line: tl.tensor, part: tl.tensor, c: tl.tensor, exists: tl.tensor,
    threshold: float,
):  # fmt: skip
    center, spread, slope, offset = _norm(center_of, spread_of, scale, shift, line + c, c, exists)
    deviation = x - center
    logit = deviation * slope + offset
    w = sigmoid(logit)
    # dl, the gradient of the logit: only values that the soft gate splits have one.
    dl = tl.where(logit > threshold, 0.0, w * (1.0 - w) * x * upstream)
    at = (part + c)[:, None]
    tl.store(sums + at, tl.sum(dl, 1, keep_dims=True), mask=exists[:, None])
    tl.store(products + at, tl.sum(dl * deviation, 1, keep_dims=True) * spread, mask=exists[:, None])


@triton.jit(do_not_specialize=FREE)
def grad_sums(
    grad: tl.tensor, x: tl.tensor, scale: tl.tensor, shift: tl.tensor, center_of: tl.tensor, spread_of: tl.tensor,
    sums: tl.tensor, products: tl.tensor, half: int, positions: int, threshold: float, channels_last: tl.constexpr,
    align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Each tile's sums of dl and of dl * xhat per channel, into (N, chunks, C)."""
    half, c, exists, line, part, near, far, inside = _pairs(
        half, positions, channels_last, align, block_c, block_p, False
    )  # fmt: skip
    a, b = values_at(x, near, inside), values_at(x, far, inside)
    upstream = values_at(grad, near, inside) + values_at(grad, far, inside)
    _store_grad_sums(
        a, upstream, center_of, spread_of, scale, shift, sums, products, line, part, c, exists, threshold
    )  # fmt: skip
    _store_grad_sums(
        b, upstream, center_of, spread_of, scale, shift, sums, products, line, part, c + half, exists, threshold
    )  # fmt: skip


@triton.jit(do_not_specialize=FREE)
def finish_grad_sums(
    sums: tl.tensor, products: tl.tensor, scale: tl.tensor, mean_dl: tl.tensor, mean_dlx: tl.tensor, channels: int,
    positions: int, per_group: tl.constexpr, count: float, chunk_positions: int, entries: tl.constexpr,
    block: tl.constexpr,
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
    _store_for_channels(mean_dl, sample, group, channels, per_group, tl.sum(dl, 0) / count, block)
    _store_for_channels(mean_dlx, sample, group, channels, per_group, tl.sum(dlx, 0) / count, block)


@triton.jit
def _input_grad(
    x: tl.tensor, own: tl.tensor, other: tl.tensor, center_of: tl.tensor, spread_of: tl.tensor, scale: tl.tensor,
    shift: tl.tensor, mean_dl: tl.tensor, mean_dlx: tl.tensor, line: tl.tensor, c: tl.tensor, exists: tl.tensor,
    threshold: float, hard: tl.constexpr,
):  # fmt: skip
    """The gradient of x, directly through the gate and through GN."""
    center, spread, slope, offset = _norm(center_of, spread_of, scale, shift, line + c, c, exists)
    deviation = x - center
    logit = deviation * slope + offset
    if hard:
        result = tl.where(logit > threshold, own, other)
    else:
        w = sigmoid(logit)
        below = w * (own + other) * (1.0 + (1.0 - w) * x * slope)
        level = spread * tl.load(mean_dl + line + c, mask=exists, other=0.0)[:, None]
        tilt = spread * spread * tl.load(mean_dlx + line + c, mask=exists, other=0.0)[:, None]
        result = tl.where(logit > threshold, own, below) - (level + deviation * tilt)
    return result


@triton.jit(do_not_specialize=FREE)
def input_grads(
    grad: tl.tensor, x: tl.tensor, scale: tl.tensor, shift: tl.tensor, center_of: tl.tensor, spread_of: tl.tensor,
    mean_dl: tl.tensor, mean_dlx: tl.tensor, out: tl.tensor, half: int, positions: int, threshold: float,
    hard: tl.constexpr, channels_last: tl.constexpr, align: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    half, c, exists, line, _, near, far, inside = _pairs(
        half, positions, channels_last, align, block_c, block_p, True
    )  # fmt: skip
    a, b = values_at(x, near, inside), values_at(x, far, inside)
    own, other = values_at(grad, near, inside), values_at(grad, far, inside)
    result = _input_grad(
        a, own, other, center_of, spread_of, scale, shift, mean_dl, mean_dlx, line, c, exists, threshold, hard
    )  # fmt: skip
    tl.store(out + near, result, mask=inside)
    result = _input_grad(
        b, other, own, center_of, spread_of, scale, shift, mean_dl, mean_dlx, line, c + half, exists, threshold, hard
    )  # fmt: skip
    tl.store(out + far, result, mask=inside)
