"""Tiles of the Triton kernels: each program has one tile, channels by positions, of one sample.

A tile is read at once, without a loop: all its loads are under way together, and
values that a reduction needs twice are still in registers. Sizes are a function of
the shapes alone, so that nothing is timed at run time. They and the alignment take few
values, so that variable image sizes compile a bounded number of variants, more in NCHW
than in channels last. They are chosen for an H100:

* Along the innermost axis, a tile is as wide as a few cache lines; of the allowed
  widths, the one that leaves the fewest threads without a value.
* A thread has 16 values of each operand, 32 of a single operand: two to four
  loads of 16 bytes in bf16. At 256 threads in flight per operand and more, that is
  above the 20 KB or so per multiprocessor that hide the memory's latency.
* Reductions take the larger tiles, for partial sums are traffic too: 8 bytes per
  channel and chunk of positions, at most 6 % of what was read. The others take the
  smaller ones, which leave more registers and a shorter tail.
* Small maps are cut finer until each multiprocessor has two programs.
"""

# ruff: noqa: ANN201  (Triton's helpers return what Triton infers)
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MULTIPROCESSORS = 132
REDUCED, MAPPED, LEAST = 8192, 2048, 512  # values of a tile
WIDTHS = {torch.channels_last: (16, 64), torch.contiguous_format: (32, 256)}


class Tiling(NamedTuple):
    """The tiles of (samples, channels, positions)."""

    samples: int
    channels: int
    positions: int
    block_c: int
    block_p: int

    @property
    def chunks(self) -> int:
        """Number of tiles that cover the positions."""
        return triton.cdiv(self.positions, self.block_p)

    @property
    def grid(self) -> tuple[int]:
        """One program for each tile."""
        return (self.samples * triton.cdiv(self.channels, self.block_c) * self.chunks,)

    def constants(self, layout: torch.memory_format, *strides: int) -> dict[str, Any]:
        """Return the kernels' constants; ``strides``: further sizes that limit the alignment of loads."""
        channels_last = layout is torch.channels_last
        inner = self.channels if channels_last else self.positions
        return dict(
            channels_last=channels_last,
            align=math.gcd(16, inner, *strides),
            block_c=self.block_c,
            block_p=self.block_p,
            num_warps=warps(self.block_c * self.block_p),
        )


def tiling(samples: int, channels: int, positions: int, layout: torch.memory_format, values: int) -> Tiling:
    """Return tiles of about ``values`` values."""
    inner, outer = (channels, positions) if layout is torch.channels_last else (positions, channels)
    width = width_of(inner, *WIDTHS[layout])
    while True:
        height = min(triton.next_power_of_2(outer), max(1, values // width))
        blocks = (width, height) if layout is torch.channels_last else (height, width)
        tiles = Tiling(samples, channels, positions, *blocks)
        if values <= LEAST or tiles.grid[0] >= 2 * MULTIPROCESSORS:
            return tiles
        values //= 2


def width_of(length: int, least: int, most: int) -> int:
    """Return the power of two between ``least`` and ``most`` that wastes little on ``length``: within 1/16 of the best.

    Less than ``least`` if ``length`` is.
    """
    widths = [2**i for i in range(least.bit_length() - 1, most.bit_length())]
    padded = [triton.cdiv(length, width) * width for width in widths]
    best = max(w for w, total in zip(widths, padded, strict=True) if total * 16 <= min(padded) * 17)
    return min(best, triton.next_power_of_2(length))


def warps(values: int) -> int:
    """Return how many warps work on a tile: 16 values a thread, in at most 8 warps."""
    return min(8, max(1, values // (16 * 32)))


def sizes(x: Tensor) -> tuple[int, int, int]:
    """Return samples, channels and positions of (N, C, H, W)."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def empty(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialized fp32 tensor on the device of ``like``."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@triton.jit
def aligned(value: int, align: tl.constexpr):
    """Let the compiler know that ``value`` is a multiple of ``align``, for loads as wide as that allows."""
    return value // align * align


@triton.jit
def inner_aligned(channels: int, positions: int, channels_last: tl.constexpr, align: tl.constexpr):
    """Return channels and positions, the innermost of them as a multiple of ``align``."""
    inner = channels if channels_last else positions
    inner = aligned(inner, align)
    return (inner, positions) if channels_last else (channels, inner)


@triton.jit
def tile_of(
    channels: int, positions: int, block_c: tl.constexpr, block_p: tl.constexpr, from_end: tl.constexpr
):  # fmt: skip
    """Return the program's sample, the number of its chunk among all samples', channels, positions and mask.

    ``from_end``: the last tiles come first; an earlier pass has left them in the L2 cache.
    """
    program = tl.program_id(0)
    if from_end:
        program = tl.num_programs(0) - 1 - program
    blocks, chunks = tl.cdiv(channels, block_c), tl.cdiv(positions, block_p)
    chunk = program // blocks
    c = program % blocks * block_c + tl.arange(0, block_c)
    p = chunk % chunks * block_p + tl.arange(0, block_p)
    inside = (c < channels)[:, None] & (p < positions)[None, :]
    return (chunk // chunks).to(tl.int64), chunk.to(tl.int64), c, p, inside


@triton.jit
def places(
    sample: tl.tensor, c: tl.tensor, p: tl.tensor, channels: int, positions: int, channels_last: tl.constexpr
):  # fmt: skip
    """Return the offsets of values (block_c, block_p) in a dense (N, channels, positions)."""
    row = channels if channels_last else positions
    return sample * channels * positions + distances(c, p, row, channels_last)


@triton.jit
def distances(c: tl.tensor, p: tl.tensor, row: int, channels_last: tl.constexpr):
    """Return (block_c, block_p) distances from a sample's first value, for rows that are ``row`` apart.

    A row is one position in channels last, one channel in NCHW.
    """
    rows, within = (p[None, :], c[:, None]) if channels_last else (c[:, None], p[None, :])
    return rows.to(tl.int64) * row + within


@triton.jit
def values_at(data: tl.tensor, at: tl.tensor, inside: tl.tensor):
    """Return values in fp32, 0 outside."""
    return tl.load(data + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def sigmoid(x: tl.tensor):
    """As tl.sigmoid within an ulp or two, for half the instructions: exp and division also guard against subnormals."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root
