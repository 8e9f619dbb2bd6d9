"""The tiles of Triton's kernels cover each map once, and what the kernels share is right at its ends."""

import itertools

import pytest
import torch

pytest.importorskip('triton', reason='Triton is not installed')

import triton
import triton.language as tl

from helpers.kernels import TRITON, device_of
from mmscconv.ops.gpu.tiles import (
    LEAST,
    MAPPED,
    MULTIPROCESSORS,
    REDUCED,
    places,
    sigmoid,
    tile_of,
    tiling,
    width_of,
)

pytestmark = TRITON


def test_tiles_cover_the_map_and_fill_the_card():
    lengths = (1, 2, 3, 24, 49, 64, 196, 512, 3136, 67200)
    for n, c, p, values in itertools.product((1, 64), lengths, lengths, (LEAST, MAPPED, REDUCED)):
        for layout in (torch.channels_last, torch.contiguous_format):
            tiles = tiling(n, c, p, layout, values)
            assert tiles.grid[0] == n * -(-c // tiles.block_c) * -(-p // tiles.block_p)
            assert tiles.block_c < 2 * c and tiles.block_p < 2 * p
            assert tiles.block_c * tiles.block_p <= values
            constants = tiles.constants(layout)
            assert constants['num_warps'] in (1, 2, 4, 8)
            assert (c if constants['channels_last'] else p) % constants['align'] == 0
            if n * c * p >= 4 * MULTIPROCESSORS * LEAST:
                assert tiles.grid[0] >= 2 * MULTIPROCESSORS


def test_widths_waste_little():
    assert [width_of(length, 16, 64) for length in (1, 3, 24, 48, 64, 320)] == [1, 4, 32, 16, 64, 64]
    assert [width_of(length, 32, 256) for length in (49, 196, 784, 3136)] == [64, 32, 64, 256]


@triton.jit
def _numbers(out, first, channels, positions, channels_last: tl.constexpr, x, y):
    sample, chunk, _, _, _ = tile_of(channels, positions, 4, 8, True)
    tl.static_assert(sample.dtype == tl.int64 and chunk.dtype == tl.int64)
    sample = (tl.program_id(0) + first).to(tl.int64)
    at = places(sample, tl.arange(0, 4), tl.arange(0, 8), channels, positions, channels_last)
    tl.store(out + tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :], at)
    tl.store(y + tl.arange(0, 4), sigmoid(tl.load(x + tl.arange(0, 4))))


def test_places_beyond_32_bits_and_sigmoid_at_its_ends():
    device = device_of('triton')
    c, p = torch.arange(4, device=device)[:, None], torch.arange(8, device=device)
    ends = torch.tensor([-1000.0, 0.0, 1000.0, float('nan')], device=device)
    for channels_last, (first, channels, positions) in itertools.product(
        (False, True), ((2**18, 100, 3001), (1, 2**30, 8), (1, 4, 2**30))
    ):
        out, y = (
            torch.empty(4, 8, dtype=torch.int64, device=device),
            torch.empty(4, device=device),
        )
        _numbers[(1,)](out, first, channels, positions, channels_last, ends, y)
        inside = p * channels + c if channels_last else c * positions + p
        assert torch.equal(out, first * channels * positions + inside)
        torch.testing.assert_close(y, ends.sigmoid(), equal_nan=True)
