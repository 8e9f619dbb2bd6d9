"""CRU's fuse behind two batch norms in training, a CPU kernel for fp32 and bf16 in channels last.

Y1' = a1 * Y1 + c1 with a = weight * rstd and c = bias - a * mean, Y2' alike, and Z = beta1 * Y1' + beta2 * Y2': an
affine map of Y1 and Y2 whose factors come from sums over the P positions. Both gradients are affine, too, with
e = beta1 * beta2 * sum(grad * (Y1' - Y2')) and dY1' = beta1 * grad + e / P, dY2' = beta2 * grad - e / P. BN's backward,
with means over the batch: dY = a * (dY' - mean(dY') - xhat * mean(dY' * xhat)), xhat = (Y - mean) * rstd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv.identities import fuse as fuse_plain
from mmscconv.ops import native
from mmscconv.ops.backend import transformed
from mmscconv.ops.gradients import (
    differentiable_gradients,
    must_be_differentiable,
    register_kernel,
    register_no_gradient,
)
from mmscconv.ops.layout import empty_channels_last, with_precision_of


def norm_fuse(
    y1: Tensor,
    pwc2_out: Tensor,
    x_low: Tensor,
    norm1: tuple[Tensor, Tensor, float],
    norm2: tuple[Tensor, Tensor, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``fuse(BN(y1), BN(cat(pwc2_out, x_low)))`` with the batch's statistics, and these statistics.

    Only the inputs are kept for backward.

    Args:
        y1, pwc2_out, x_low: (N, C, H, W), (N, C - l, H, W) and (N, l, H, W), all fp32 or
            all bf16, channels last; not empty.
        norm1, norm2: Weight and bias (C), fp32, and eps, of both norms.

    Returns:
        (N, C, H, W), channels last; mean and biased variance of both norms, (2, C) each, without gradients.
    """
    if transformed():
        return norm_fuse_plain(y1, pwc2_out, x_low, norm1, norm2)
    out, mean, variance, _ = torch.ops.mmscconv.norm_fuse(y1, pwc2_out, x_low, *norm1, *norm2)
    return out, mean, variance


def norm_fuse_plain(
    y1: Tensor,
    pwc2_out: Tensor,
    x_low: Tensor,
    norm1: tuple[Tensor, Tensor, float],
    norm2: tuple[Tensor, Tensor, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the work of :func:`norm_fuse` by PyTorch operations."""
    both = [with_precision_of(t, norm1[0]) for t in (y1, torch.cat((pwc2_out, x_low), dim=1))]
    out = fuse_plain(*(_normed(y, *norm) for y, norm in zip(both, (norm1, norm2), strict=True)))
    doubles = [y.detach().double() for y in both]
    mean = torch.stack([y.mean(dim=(0, 2, 3)) for y in doubles])
    return out.to(y1.dtype), mean, torch.stack([y.var(dim=(0, 2, 3), correction=0) for y in doubles])


def _normed(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.batch_norm(y, None, None, weight, bias, training=True, eps=eps)


_SCHEMA = (
    'Tensor y1, Tensor pwc2_out, Tensor x_low, Tensor weight1, Tensor bias1, float eps1, Tensor weight2, Tensor bias2,'
    ' float eps2'
)
torch.library.define('mmscconv::norm_fuse', f'({_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)')
torch.library.define(
    'mmscconv::norm_fuse_backward',
    f'(Tensor grad, {_SCHEMA}, Tensor mean, Tensor variance, Tensor sample_means)'
    ' -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)


register_kernel('norm_fuse', 'cpu', native.norm_fuse)
register_kernel('norm_fuse_backward', 'cpu', native.norm_fuse_backward)


@torch.library.register_fake('mmscconv::norm_fuse')
def _forward_fake(y1: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c = y1.shape[:2]
    mean, variance = (y1.new_empty(2, c, dtype=torch.float64) for _ in range(2))
    return (
        empty_channels_last(y1.shape, y1.device, y1.dtype),
        mean,
        variance,
        y1.new_empty(2, n, c, dtype=torch.float64),
    )


@torch.library.register_fake('mmscconv::norm_fuse_backward')
def _backward_fake(
    _: Tensor, y1: Tensor, pwc2_out: Tensor, x_low: Tensor, weight1: Tensor, *__: Any
) -> tuple[Tensor, ...]:
    maps = [empty_channels_last(t.shape, t.device, t.dtype) for t in (y1, pwc2_out, x_low)]
    return *maps, *(torch.empty_like(weight1, dtype=torch.float32) for _ in range(4))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y1, pwc2_out, x_low, weight1, bias1, ctx.eps1, weight2, bias2, ctx.eps2 = inputs
    statistics = output[1:]
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(y1, pwc2_out, x_low, weight1, bias1, weight2, bias2, *statistics)


def _backward_of_forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    y1, pwc2_out, x_low, weight1, bias1, weight2, bias2, *statistics = ctx.saved_tensors
    grads: Sequence[Tensor | None]
    if must_be_differentiable():
        needs = ctx.needs_input_grad
        *grads, grad_weight1, grad_bias1, grad_weight2, grad_bias2 = differentiable_gradients(
            lambda y1, pwc2_out, x_low, weight1, bias1, weight2, bias2: norm_fuse_plain(
                y1, pwc2_out, x_low, (weight1, bias1, ctx.eps1), (weight2, bias2, ctx.eps2)
            )[0],
            (y1, pwc2_out, x_low, weight1, bias1, weight2, bias2),
            (grad,),
            (*needs[:5], *needs[6:8]),
        )
        return *grads, grad_weight1, grad_bias1, None, grad_weight2, grad_bias2, None
    *grads, grad_weight1, grad_bias1, grad_weight2, grad_bias2 = torch.ops.mmscconv.norm_fuse_backward(
        grad, y1, pwc2_out, x_low, weight1, bias1, ctx.eps1, weight2, bias2, ctx.eps2, *statistics
    )
    return *grads, grad_weight1, grad_bias1, None, grad_weight2, grad_bias2, None


torch.library.register_autograd('mmscconv::norm_fuse', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('norm_fuse_backward')
