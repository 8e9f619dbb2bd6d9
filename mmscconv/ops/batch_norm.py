"""Batch norm with the batch's statistics, a CPU kernel for fp32 and bf16 in channels last, for maps of few channels.

PyTorch's norm works on one row of channels at a time, which fills a part of a vector where channels are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv.ops import native
from mmscconv.ops.backend import transformed
from mmscconv.ops.gradients import (
    differentiable_gradients,
    must_be_differentiable,
    register_kernel,
    register_no_gradient,
)
from mmscconv.ops.layout import empty_channels_last, with_precision_of


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norm of ``x`` with the batch's statistics, which are returned as well.

    Args:
        x: (N, C, H, W), fp32 or bf16; not empty.
        weight, bias: (C), fp32.
        eps: Added to the variance.

    Returns:
        (N, C, H, W), channels last; mean and biased variance, (C) each, in double and without gradients.
    """
    if transformed():
        return batch_norm_plain(x, weight, bias, eps)
    return torch.ops.mmscconv.batch_norm(x, weight, bias, eps)


def batch_norm_plain(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of :func:`batch_norm` by PyTorch operations."""
    values = x.detach().double()
    mean, variance = values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), correction=0)
    y = F.batch_norm(with_precision_of(x, weight), None, None, weight, bias, training=True, eps=eps)
    return y.to(x.dtype), mean, variance


torch.library.define(
    'mmscconv::batch_norm', '(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)'
)
torch.library.define(
    'mmscconv::batch_norm_backward',
    '(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor variance, float eps) -> (Tensor, Tensor, Tensor)',
)
register_kernel('batch_norm', 'cpu', native.batch_norm)
register_kernel('batch_norm_backward', 'cpu', native.batch_norm_backward)


@torch.library.register_fake('mmscconv::batch_norm')
def _batch_norm_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(2))
    return empty_channels_last(x.shape, x.device, x.dtype), mean, variance


@torch.library.register_fake('mmscconv::batch_norm_backward')
def _batch_norm_backward_fake(_: Tensor, x: Tensor, weight: Tensor, *__: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight, grad_bias = (torch.empty_like(weight, dtype=torch.float32) for _ in range(2))
    return empty_channels_last(x.shape, x.device, x.dtype), grad_weight, grad_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward_of_forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, variance = ctx.saved_tensors
    grads: Sequence[Tensor | None]
    if must_be_differentiable():
        grads = differentiable_gradients(
            lambda x, weight, bias: batch_norm_plain(x, weight, bias, ctx.eps)[0],
            (x, weight, bias),
            (grad,),
            ctx.needs_input_grad[:3],
        )
    else:
        grads = torch.ops.mmscconv.batch_norm_backward(grad, x, weight, mean, variance, ctx.eps)
    return *grads, None


torch.library.register_autograd('mmscconv::batch_norm', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('batch_norm_backward')
