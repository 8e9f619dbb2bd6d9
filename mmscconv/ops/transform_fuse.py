"""CRU's transform and fuse (Eq. 5-9) from the squeezed branches on: the CPU op for channels-last fp32 and bf16.

The outputs of GWC, PWC1 and PWC2 never leave the caches. If :func:`mmscconv.ops.fits` says no, the layers compose
the same from other ops.
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
from mmscconv.ops.window import Window, window_of


def transform_fuse(
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    window: Window,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Return ``fuse(gwc(x_up), low, pwc1(up), pwc2(low))`` without writing intermediate results.

    Only the inputs are kept for backward.

    Args:
        x_up: (N, u, H, W), the GWC's input; all maps are fp32, or all bf16, and all weights fp32.
        up, low: (N, u, H', W') and (N, l, H', W'), the 1x1 convolutions' inputs; ``up`` is None if PWC1 reads
            ``x_up`` itself, which needs a window with a centre tap.
        weights: Weights of GWC (C, u / groups, ...), PWC1 (C, u, 1, 1) and PWC2 (C - l, l, 1, 1), or
            (C, l, 1, 1) if PWC2 computes all of Y2.
        window: The GWC's settings; padding below and right follows from H' and W'.
        biases: Biases of Y1 (C) and of PWC2.

    Returns:
        (N, C, H', W'), channels last.
    """
    if transformed():
        return transform_fuse_plain(x_up, up, low, weights, window, biases)
    return torch.ops.mmscconv.transform_fuse(x_up, up, low, *weights, *biases, window.groups, window.numbers)[0]


def transform_fuse_plain(
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    window: Window,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Do the work of :func:`transform_fuse` by PyTorch operations."""
    gwc, pwc1, pwc2 = weights
    dtype = x_up.dtype
    x_up, low = with_precision_of(x_up, gwc), with_precision_of(low, gwc)
    size, out = x_up.shape[2:], low.shape[2:]
    if up is None:  # PWC1 reads where the centre tap does, also outside of the image
        up = F.pad(x_up, (0, out[1] - size[1], 0, out[0] - size[0]))
    up = with_precision_of(up, gwc)
    zeros = []
    for axis in (1, 0):  # F.pad starts with the last axis
        before = window.padding[axis]
        end = (out[axis] - 1) * window.stride[axis] + (window.kernel_size[axis] - 1) * window.dilation[axis] + 1
        zeros += [before, end - before - size[axis]]
    padded = F.pad(x_up, zeros)
    y1 = F.conv2d(padded, gwc, biases[0], window.stride, 0, window.dilation, window.groups) + F.conv2d(up, pwc1)
    pwc2_out = F.conv2d(low, pwc2, biases[1])
    y = fuse_plain(y1, pwc2_out) if len(pwc2) == len(gwc) else fuse_plain(y1, low, None, pwc2_out)
    return y.to(dtype)


torch.library.define(
    'mmscconv::transform_fuse',
    '(Tensor x_up, Tensor? up, Tensor low, Tensor gwc, Tensor pwc1, Tensor pwc2, Tensor? bias1, Tensor? bias2,'
    ' int groups, int[] window) -> (Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::transform_fuse_backward',
    '(Tensor grad, Tensor x_up, Tensor? up, Tensor low, Tensor gwc, Tensor pwc1, Tensor pwc2, Tensor? bias1,'
    ' Tensor? bias2, Tensor beta1, int groups, int[] window)'
    ' -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
register_kernel('transform_fuse', 'cpu', native.transform_fuse)
register_kernel('transform_fuse_backward', 'cpu', native.transform_fuse_backward)


@torch.library.register_fake('mmscconv::transform_fuse')
def _transform_fuse_fake(_: Tensor, __: Tensor | None, low: Tensor, gwc: Tensor, *___: Any) -> tuple[Tensor, Tensor]:
    n, _l, h, w = low.shape
    c = len(gwc)
    return empty_channels_last((n, c, h, w), low.device, low.dtype), low.new_empty(n, c, dtype=torch.float32)


@torch.library.register_fake('mmscconv::transform_fuse_backward')
def _transform_fuse_backward_fake(
    grad: Tensor,
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    gwc: Tensor,
    pwc1: Tensor,
    pwc2: Tensor,
    bias1: Tensor | None,
    bias2: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    nothing = x_up.new_empty(0, dtype=torch.float32)
    inputs = [nothing if t is None else empty_channels_last(t.shape, t.device, t.dtype) for t in (x_up, up, low)]
    grad_gwc = empty_channels_last(gwc.shape, gwc.device)
    others = [nothing.new_empty(0 if t is None else t.shape) for t in (pwc1, pwc2, bias1, bias2)]
    return *inputs, grad_gwc, *others


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.groups, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward_of_forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, beta1 = ctx.saved_tensors
    grads: Sequence[Tensor | None]
    if must_be_differentiable():
        window = window_of(ctx.groups, ctx.window)
        grads = differentiable_gradients(
            lambda x_up, up, low, gwc, pwc1, pwc2, *biases: transform_fuse_plain(
                x_up, up, low, (gwc, pwc1, pwc2), window, biases
            ),
            inputs,
            (grad,),
            ctx.needs_input_grad[: len(inputs)],
        )
    else:
        grads = torch.ops.mmscconv.transform_fuse_backward(grad, *inputs, beta1, ctx.groups, ctx.window)
    return *(None if t is None else grad for grad, t in zip(grads, inputs, strict=True)), None, None


torch.library.register_autograd('mmscconv::transform_fuse', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('transform_fuse_backward')
