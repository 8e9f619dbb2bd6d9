"""The two CPU ops that reach over a 1x1 convolution, for channels-last fp32.

X^w then never leaves the caches, and in the deploy form PWC1's and PWC2's outputs
neither. Where :func:`fits` or :func:`runs_on` says no, the layers compose the same
from the other ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmscconv.ops import native
from mmscconv.ops.backend import choose_backend
from mmscconv.ops.layout import layout_of


def runs_on(x: Tensor, backend: str | None) -> bool:
    """Return whether the ops of this module take an input like ``x``; ``backend`` as chosen by hand, or None."""
    chosen = choose_backend(x, backend, beyond_fusion=True)
    return chosen == 'native' and not torch.is_grad_enabled() and fits(x)


def fits(x: Tensor) -> bool:
    """Return whether the kernels are written for an input like ``x``."""
    return x.dtype is torch.float32 and layout_of(x) is torch.channels_last and x.numel() > 0


def sru_squeeze(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return X_up and X_low, (N, u, H, W) each, of the SRU's output, which backward computes again.

    Args:
        x: (N, C, H, W).
        *arguments: ``scale, shift, num_groups, eps, threshold, hard`` of
            :func:`mmscconv.ops.sru.sru`, then the weights (u, C / 2, 1, 1) of both squeezes.
    """
    return torch.ops.mmscconv.sru_squeeze(x, *arguments)


def fuse_pointwise(first: Tensor, *arguments: Any) -> Tensor:
    """Return ``fuse(first, low, pwc1(up), pwc2(low), scale, shift)``, written over ``first``.

    Args:
        first: (N, C, H, W), the GWC's output.
        *arguments: ``up, low``, (N, u, H, W) and (N, l, H, W), may be slices;
            ``weight1`` (C, u, 1, 1); ``weight2`` (C - l, l, 1, 1), or (C, l, 1, 1) where
            PWC2 makes all of Y2; ``bias2, scale, shift``, each may be None.
    """
    torch.ops.mmscconv.fuse_pointwise(first, *arguments)
    return first


torch.library.define(
    'mmscconv::sru_squeeze',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, Tensor up,'
    ' Tensor low) -> (Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::fuse_pointwise',
    '(Tensor(a!) first, Tensor up, Tensor low, Tensor weight1, Tensor weight2, Tensor? bias2, Tensor? scale,'
    ' Tensor? shift) -> ()',
)
torch.library.impl('mmscconv::sru_squeeze', 'cpu')(native.sru_squeeze)
torch.library.impl('mmscconv::fuse_pointwise', 'cpu')(native.fuse_pointwise)


@torch.library.register_fake('mmscconv::sru_squeeze')
def _sru_squeeze_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    n, _, h, w = x.shape
    x_up, x_low = (
        torch.empty(n, len(weight), h, w, device=x.device, memory_format=torch.channels_last)
        for weight in arguments[-2:]
    )
    return x_up, x_low


@torch.library.register_fake('mmscconv::fuse_pointwise')
def _fuse_pointwise_fake(first: Tensor, *_: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, shift, ctx.num_groups, ctx.eps, ctx.threshold, ctx.hard, up, low = inputs
    ctx.save_for_backward(x, scale, shift, up, low)


def _squeeze_backward(ctx: Any, grad_up: Tensor, grad_low: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, shift, up, low = ctx.saved_tensors
    reconstructed, mean, rstd = torch.ops.mmscconv.sru(
        x, scale, shift, ctx.num_groups, ctx.eps, ctx.threshold, ctx.hard, 'native'
    )
    grad, grad_weight, _ = torch.ops.aten.convolution_backward(
        torch.cat((grad_up, grad_low), dim=1), reconstructed, torch.cat((up, low)), None,
        [1, 1], [0, 0], [1, 1], False, [0, 0], 2, [True, True, False],
    )  # fmt: skip
    grads = torch.ops.mmscconv.sru_backward(grad, x, scale, shift, mean, rstd, ctx.threshold, ctx.hard, 'native')
    return *grads, None, None, None, None, *grad_weight.split((len(up), len(low)))


torch.library.register_autograd('mmscconv::sru_squeeze', _squeeze_backward, setup_context=_setup_context)
