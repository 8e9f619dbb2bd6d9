"""SRU and the two squeezes of the CRU behind it: the plain form, and the CPU op for channels-last fp32 and bf16.

X^w never leaves the caches. If :func:`mmscconv.ops.fits` says no, the layers compose the same from other ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv.identities import sru as sru_plain
from mmscconv.ops import native
from mmscconv.ops.backend import transformed
from mmscconv.ops.gradients import (
    FOR_INFERENCE,
    differentiable_gradients,
    must_be_differentiable,
    register_kernel,
    register_no_gradient,
)
from mmscconv.ops.layout import empty_channels_last, with_precision_of
from mmscconv.ops.window import pooled_size


def sru_squeeze(
    x: Tensor,
    arguments: tuple[Tensor, Tensor, int, float, float, bool],
    up: Tensor,
    low: Tensor,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
    pool: tuple[int, int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    """Return X_up and X_low, (N, u, H, W) and (N, l, H', W'), of the SRU's output, which backward recomputes.

    Args:
        x: (N, C, H, W), fp32 or bf16; all weights are fp32.
        arguments: ``scale, shift, num_groups, eps, threshold, hard`` of :func:`mmscconv.ops.sru.sru`.
        up, low: The squeezes' weights, (u, C_up, 1, 1) and (l, C - C_up, 1, 1).
        biases: Biases of both squeezes, (u) and (l).
        pool: Height and width of the windows that average X^w for X_low, the last one of a line or column cut off
            where the image ends; for inference only.
    """
    if transformed():
        return sru_squeeze_plain(x, arguments, up, low, biases, pool)
    return torch.ops.mmscconv.sru_squeeze(x, *arguments, up, low, *biases, pool)[:2]


def sru_squeeze_plain(
    x: Tensor,
    arguments: tuple[Tensor, Tensor, int, float, float, bool],
    up: Tensor,
    low: Tensor,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
    pool: tuple[int, int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    """Do the work of :func:`sru_squeeze` by PyTorch operations."""
    y = sru_plain(with_precision_of(x, up), *arguments)
    for_up, for_low = y.split((up.shape[1], low.shape[1]), dim=1)
    if tuple(pool) != (1, 1):
        for_low = F.avg_pool2d(for_low, pool, ceil_mode=True)
    return F.conv2d(for_up, up, biases[0]).to(x.dtype), F.conv2d(for_low, low, biases[1]).to(x.dtype)


torch.library.define(
    'mmscconv::sru_squeeze',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, Tensor up,'
    ' Tensor low, Tensor? bias_up, Tensor? bias_low, int[] pool)'
    ' -> (Tensor, Tensor, Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::sru_squeeze_backward',
    '(Tensor grad_up, Tensor grad_low, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor rstd, Tensor up,'
    ' Tensor low, float threshold, bool hard) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
)
register_kernel('sru_squeeze', 'cpu', native.sru_squeeze)
register_kernel('sru_squeeze_backward', 'cpu', native.sru_squeeze_backward)


@torch.library.register_fake('mmscconv::sru_squeeze')
def _sru_squeeze_fake(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool,
    up: Tensor,
    low: Tensor,
    bias_up: Tensor | None,
    bias_low: Tensor | None,
    pool: Sequence[int],
) -> tuple[Tensor, ...]:
    n, size = len(x), x.shape[2:]
    branches = [
        empty_channels_last((n, len(weight), *size), x.device, x.dtype)
        for weight, size in ((up, size), (low, pooled_size(size, pool)))
    ]
    return *branches, *(x.new_empty(n, num_groups, dtype=torch.float32) for _ in range(2))


@torch.library.register_fake('mmscconv::sru_squeeze_backward')
def _sru_squeeze_backward_fake(
    grad_up: Tensor,
    grad_low: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    up: Tensor,
    low: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    weights = (scale, shift, up, low)
    return empty_channels_last(x.shape, x.device, x.dtype), *(torch.empty_like(t, dtype=torch.float32) for t in weights)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, shift, *ctx.settings, up, low, bias_up, bias_low, ctx.pool = inputs
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, shift, up, low, bias_up, bias_low, mean, rstd)


def _backward_of_forward(ctx: Any, grad_up: Tensor, grad_low: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if tuple(ctx.pool) != (1, 1):
        raise RuntimeError(FOR_INFERENCE)
    *inputs, mean, rstd = ctx.saved_tensors
    x, scale, shift, up, low, *biases = inputs
    _, _, threshold, hard = ctx.settings
    grads: Sequence[Tensor | None]
    if must_be_differentiable():
        grads = differentiable_gradients(
            lambda x, scale, shift, up, low, *biases: sru_squeeze_plain(
                x, (scale, shift, *ctx.settings), up, low, biases
            ),
            inputs,
            (grad_up, grad_low),
            (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[7:11]),
        )
    else:
        pairs = zip((grad_up, grad_low), biases, strict=True)
        grads = (
            *torch.ops.mmscconv.sru_squeeze_backward(
                grad_up, grad_low, x, scale, shift, mean, rstd, up, low, threshold, hard
            ),
            *(None if bias is None else grad.sum(dim=(0, 2, 3), dtype=bias.dtype) for grad, bias in pairs),
        )
    return *grads[:3], None, None, None, None, *grads[3:], None


torch.library.register_autograd('mmscconv::sru_squeeze', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('sru_squeeze_backward')
