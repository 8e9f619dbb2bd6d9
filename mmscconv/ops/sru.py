"""SRU's arithmetic (Eq. 1-4): the plain form, and the custom op that runs the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmscconv.identities import sru as sru_plain
from mmscconv.ops.backend import choose_backend, kernels
from mmscconv.ops.gradients import (
    differentiable_gradients,
    must_be_differentiable,
    register_kernel,
    register_no_gradient,
)
from mmscconv.ops.layout import empty_like_dense


def sru(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool,
    backend: str | None = None,
) -> Tensor:
    """Return X^w of Eq. 4, equal to :func:`mmscconv.identities.sru`.

    The kernels read X twice and write the result once; backward recomputes the
    gate from X and the groups' statistics instead of keeping masks and products.

    Args:
        x: (N, C, H, W), C even.
        scale, shift: (C), in at least fp32: the affine of GN with Eq. 2's weights folded in.
        num_groups, eps: The GN's settings.
        threshold: Limit of the logit; infinite if all or no positions are informative.
        hard: Whether the gate is the hard one.
        backend: See :mod:`mmscconv.ops.backend`.

    Returns:
        (N, C, H, W), in the dtype and layout of ``x``.
    """
    backend = choose_backend(x, backend)
    if backend == 'plain' or not x.numel():
        return sru_plain(x, scale, shift, num_groups, eps, threshold, hard)
    return torch.ops.mmscconv.sru(x, scale, shift, num_groups, eps, threshold, hard, backend)[0]


torch.library.define(
    'mmscconv::sru',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, str backend)'
    ' -> (Tensor, Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::sru_backward',
    '(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor rstd, float threshold, bool hard,'
    ' str backend) -> (Tensor, Tensor, Tensor)',
)


def _forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *settings, backend = arguments
    return kernels(backend).sru_forward(x, *settings)


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *settings, backend = arguments
    return kernels(backend).sru_backward(grad, *settings)


register_kernel('sru', ('cpu', 'cuda'), _forward)
register_kernel('sru_backward', ('cpu', 'cuda'), _backward)


@torch.library.register_fake('mmscconv::sru')
def _forward_fake(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean = scale.new_empty(x.shape[0], num_groups, dtype=torch.float32)
    return empty_like_dense(x), mean, torch.empty_like(mean)


@torch.library.register_fake('mmscconv::sru_backward')
def _backward_fake(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_scale, grad_shift = (torch.empty_like(t, dtype=torch.float32) for t in (scale, shift))
    return empty_like_dense(x), grad_scale, grad_shift


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, shift, *ctx.settings, ctx.backend = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, shift, mean, rstd)


def _backward_of_forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, scale, shift, mean, rstd = ctx.saved_tensors
    num_groups, eps, threshold, hard = ctx.settings
    grads: Sequence[Tensor | None]
    if must_be_differentiable():
        grads = differentiable_gradients(
            lambda x, scale, shift: sru_plain(x, scale, shift, num_groups, eps, threshold, hard),
            (x, scale, shift),
            (grad,),
            ctx.needs_input_grad[:3],
        )
    else:
        grads = torch.ops.mmscconv.sru_backward(grad, x, scale, shift, mean, rstd, threshold, hard, ctx.backend)
    return *grads, None, None, None, None, None


torch.library.register_autograd('mmscconv::sru', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('sru_backward')
