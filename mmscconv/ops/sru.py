"""SRU's arithmetic (Eq. 1-4): the plain form, and the custom op that the kernels stand behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmscconv.ops.backend import choose_backend, exporting, kernels, transformed
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
    """Return X^w of Eq. 4, equal to :func:`sru_plain`.

    The kernels read X twice and write the result once; backward recomputes the
    gate from X and the groups' statistics instead of keeping masks and products.

    Args:
        x: (N, C, H, W), C even.
        scale, shift: (C), in at least fp32: the affine of GN with Eq. 2's weights folded in.
        num_groups, eps: Of the GN.
        threshold: Of the logit; infinite where every or no position is informative.
        hard: Whether the gate is the hard one.
        backend: See :mod:`mmscconv.ops.backend`.

    Returns:
        (N, C, H, W), in the dtype and layout of ``x``.
    """
    backend = choose_backend(x, backend)
    if backend == 'plain' or not x.numel():
        return sru_plain(x, scale, shift, num_groups, eps, threshold, hard)
    return torch.ops.mmscconv.sru(x, scale, shift, num_groups, eps, threshold, hard, backend)[0]


def logit(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float, written_out: bool = False) -> Tensor:
    """Return the argument of Eq. 3's sigmoid, in the dtype of ``scale``.

    ``written_out``: GN by operations that have derivatives of every order and mode. torch.group_norm has not: its
    gradient has no forward-mode derivative, and its second one no batching rule.
    """
    values = x.to(scale.dtype)
    if written_out or transformed():
        return _group_norm(values, scale, shift, num_groups, eps)
    copied = _ends_the_process(values, scale, shift)
    if copied:
        values = values.clone(memory_format=torch.contiguous_format)
    # No autocast lowers group_norm on fp32 input; unlike nn.GroupNorm, it also takes one value per group.
    z = torch.group_norm(values, num_groups, scale, shift, eps)
    return z.contiguous(memory_format=torch.channels_last) if copied else z


def _group_norm(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float) -> Tensor:
    grouped = x.unflatten(1, (num_groups, -1))
    variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0, keepdim=True)
    normed = ((grouped - mean) * (variance + eps).rsqrt()).flatten(1, 2)
    return normed * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


def _ends_the_process(x: Tensor, scale: Tensor, shift: Tensor) -> bool:
    """Return whether backward of group_norm might.

    In torch 2.11 it is a segmentation fault for a channels-last CPU tensor of which no gradient is asked for, but
    gradients of scale or shift are.
    """
    if x.device.type != 'cpu' or not torch.is_grad_enabled() or exporting():
        return False
    return (scale.requires_grad or shift.requires_grad) and x.is_contiguous(memory_format=torch.channels_last)


def sru_plain(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool,
    written_out: bool = False,
) -> Tensor:
    """Return what :func:`sru` returns, by PyTorch operations: the definition of correct."""
    z = logit(x, scale, shift, num_groups, eps, written_out)
    return separate_and_cross(x, z > threshold, None if hard else z.sigmoid())


def separate_and_cross(x: Tensor, informative: Tensor, weights: Tensor | None) -> Tensor:
    """Return X^w of Eq. 4 from the gate's decisions and W; None in the place of W is the hard gate."""
    # Products and differences, not torch.where, for which ONNX Runtime takes several times longer.
    kept = informative * x
    less = x - kept
    if weights is not None:
        less = weights * less
    kept_a, kept_b = kept.chunk(2, dim=1)
    less_a, less_b = less.chunk(2, dim=1)
    if weights is None:
        return torch.cat((kept_a + less_b, kept_b + less_a), dim=1)
    # X1 holds what is less informative as well, so X11 + X22 and X21 + X12 share it.
    shared = less_a + less_b
    return torch.cat((kept_a + shared, kept_b + shared), dim=1).to(x.dtype)


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
            lambda x, scale, shift: sru_plain(x, scale, shift, num_groups, eps, threshold, hard, written_out=True),
            (x, scale, shift),
            (grad,),
            ctx.needs_input_grad[:3],
        )
    else:
        grads = torch.ops.mmscconv.sru_backward(grad, x, scale, shift, mean, rstd, threshold, hard, ctx.backend)
    return *grads, None, None, None, None, None


torch.library.register_autograd('mmscconv::sru', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('sru_backward')
