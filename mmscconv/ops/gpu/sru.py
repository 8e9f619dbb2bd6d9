"""SRU, Eq. 1-4, through its Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmscconv.ops.fitting import check_sru, check_sru_backward
from mmscconv.ops.gpu.sru_kernels import finish_grad_sums, finish_moments, gate, grad_sums, input_grads, moments
from mmscconv.ops.gpu.tiles import MAPPED, REDUCED, Tiling, empty, sizes, tiling
from mmscconv.ops.layout import as_dense, empty_like_dense, layout_of

ENTRIES = 1024  # partial results that a program combines at a time


def sru_forward(
    x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    check_sru(x, scale, shift, num_groups)
    layout = layout_of(x)
    values, scale, shift = as_dense(x, layout), scale.contiguous(), shift.contiguous()
    n, c, p = sizes(x)
    mean, rstd = (empty(x, n, num_groups) for _ in range(2))
    center_of, spread_of = (empty(x, n, c) for _ in range(2))
    out = empty_like_dense(x)
    with torch.cuda.device_of(x):
        tiles = tiling(n, c, p, layout, REDUCED)
        means, squares = (empty(x, n, tiles.chunks, c) for _ in range(2))
        moments[tiles.grid](values, means, squares, c, p, **tiles.constants(layout))
        finish_moments[(mean.numel(),)](
            means, squares, mean, rstd, center_of, spread_of, eps=eps, **_grouping(c, p, c // num_groups, tiles)
        )
        tiles = tiling(n, c // 2, p, layout, MAPPED)
        gate[tiles.grid](
            values, scale, shift, center_of, spread_of, out, c // 2, p, threshold, hard, **tiles.constants(layout)
        )
    return out, mean, rstd


def sru_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    check_sru_backward(grad, x, scale, shift, mean, rstd)
    layout = layout_of(x)
    values, upstream, scale, shift = as_dense(x, layout), as_dense(grad, layout), scale.contiguous(), shift.contiguous()
    n, c, p = sizes(x)
    center_of, spread_of = (t.repeat_interleave(c // mean.shape[1], 1) for t in (mean, rstd))
    grad_x = empty_like_dense(x)
    with torch.cuda.device_of(x):
        if hard:
            grad_scale, grad_shift, mean_dl, mean_dlx = torch.zeros_like(scale), torch.zeros_like(shift), None, None
        else:
            # Tiles half as large as elsewhere: there are four operands.
            tiles = tiling(n, c // 2, p, layout, REDUCED // 2)
            sums, products = (empty(x, n, tiles.chunks, c) for _ in range(2))
            grad_sums[tiles.grid](
                upstream, values, scale, shift, center_of, spread_of, sums, products, c // 2, p, threshold,
                **tiles.constants(layout),
            )  # fmt: skip
            mean_dl, mean_dlx = torch.empty_like(center_of), torch.empty_like(center_of)
            finish_grad_sums[(mean.numel(),)](
                sums, products, scale, mean_dl, mean_dlx, **_grouping(c, p, c // mean.shape[1], tiles)
            )
            grad_scale, grad_shift = products.sum((0, 1)), sums.sum((0, 1))
        tiles = tiling(n, c // 2, p, layout, MAPPED)
        input_grads[tiles.grid](
            upstream, values, scale, shift, center_of, spread_of, mean_dl, mean_dlx, grad_x, c // 2, p, threshold, hard,
            **tiles.constants(layout),
        )  # fmt: skip
    return grad_x, grad_scale, grad_shift


def _grouping(channels: int, positions: int, per_group: int, tiles: Tiling) -> dict[str, float]:
    """Return the arguments of the kernels that combine the tiles' results for each group."""
    return dict(
        channels=channels,
        positions=positions,
        per_group=per_group,
        count=float(per_group * positions),
        chunk_positions=tiles.block_p,
        entries=min(ENTRIES, triton.next_power_of_2(per_group * tiles.chunks)),
        block=triton.next_power_of_2(per_group),
    )
