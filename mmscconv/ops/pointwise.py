"""The two CPU ops that reach over convolutions, for channels-last fp32.

X^w then never leaves the caches, and the outputs of GWC, PWC1 and PWC2 neither.
Where :func:`fits` or :func:`runs_on` says no, the layers compose the same from
the other ops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmscconv.ops import native, packing
from mmscconv.ops.backend import choose_backend
from mmscconv.ops.fuse import FOR_INFERENCE
from mmscconv.ops.layout import layout_of


def runs_on(x: Tensor, backend: str | None, *weights: Tensor) -> bool:
    """Return whether the ops of this module take an input like ``x``; ``backend`` as chosen by hand, or None."""
    chosen = choose_backend(x, backend, beyond_fusion=True)
    return chosen == 'native' and not torch.is_grad_enabled() and fits(x, *weights)


def fits(x: Tensor, *weights: Tensor) -> bool:
    """Return whether the kernels are written for an input like ``x`` and for ``weights``, which they read as fp32."""
    alike = all(t.dtype is torch.float32 for t in (x, *weights))
    return alike and layout_of(x) is torch.channels_last and x.numel() > 0


def sru_squeeze(
    x: Tensor,
    arguments: tuple[Tensor, Tensor, int, float, float, bool],
    up: Tensor,
    low: Tensor,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
    pool: tuple[int, int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    """Return X_up and X_low, (N, u, H, W) and (N, l, H', W'), of the SRU's output, which backward computes again.

    Args:
        x: (N, C, H, W).
        arguments: ``scale, shift, num_groups, eps, threshold, hard`` of :func:`mmscconv.ops.sru.sru`.
        up, low: The squeezes' weights, (u, C_up, 1, 1) and (l, C - C_up, 1, 1).
        biases: Of both squeezes, (u) and (l).
        pool: Height and width of windows over which X^w is averaged for X_low, the last one of a line or column
            cut off where the image ends; for inference only.
    """
    return torch.ops.mmscconv.sru_squeeze(x, *arguments, up, low, *biases, pool)[:2]


@dataclass(frozen=True)
class Window:
    """What a convolution is besides its channels and weights; padding is that above and left of the image."""

    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Kernel size, stride, padding and dilation, as the ops take them."""
        return (*self.kernel_size, *self.stride, *self.padding, *self.dilation)

    @property
    def centre(self) -> int | None:
        """The tap that sees the position of its output, None where there is none."""
        return packing.centre_of(self.numbers)


def transform_fuse(
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    window: Window,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Return ``fuse(gwc(x_up), low, pwc1(up), pwc2(low))``, of which only the result is written.

    Only the inputs are kept for backward.

    Args:
        x_up: (N, u, H, W), the GWC's input.
        up, low: (N, u, H', W') and (N, l, H', W'), the 1x1 convolutions' inputs; ``up`` is None where it is x_up
            and the window has a ``centre``, which then does PWC1 as well.
        weights: Of GWC (C, u / groups, ...), PWC1 (C, u, 1, 1) and PWC2 (C - l, l, 1, 1), or
            (C, l, 1, 1) where PWC2 makes all of Y2.
        window: Of the GWC; padding below and right is what the size of ``up`` says.
        biases: Of Y1 (C) and of PWC2.

    Returns:
        (N, C, H', W'), channels last.
    """
    return torch.ops.mmscconv.transform_fuse(x_up, up, low, *weights, *biases, window.groups, window.numbers)[0]


def scconv(
    x: Tensor,
    arguments: tuple[Tensor, Tensor, int, float, float, bool],
    squeezes: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    transform: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    channels: tuple[int, int, int, int, int],
    window: Window,
    centre: int | None,
    relu: bool,
) -> Tensor:
    """Return what :func:`sru_squeeze` and :func:`transform_fuse` give one after the other, for inference only.

    Args:
        x: (N, C, H, W).
        arguments: As those of :func:`sru_squeeze`.
        squeezes: Both weights from :func:`mmscconv.ops.packing.packed`, and both biases.
        transform: The weights from :func:`mmscconv.ops.packing.packed_transform`, the biases of Y1 and of PWC2, and
            scale and shift (C2) of a norm behind the layer.
        channels: The upper branch's part of C, u, l, C2, and what PWC2 makes.
        window: Of the GWC; average pooling by its stride, with windows side by side, is that of X_low and of PWC1.
        centre: The tap that does PWC1 as well, or None.
        relu: Whether a ReLU ends it.

    Returns:
        (N, C2, H', W'), channels last.
    """
    return torch.ops.mmscconv.scconv(
        x, *arguments, squeezes, transform, channels, window.groups, window.numbers, centre, relu
    )


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
torch.library.define(
    'mmscconv::scconv',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, Tensor?[] squeezes,'
    ' Tensor?[] transform, int[] channels, int groups, int[] window, int? centre, bool relu) -> Tensor',
)
torch.library.impl('mmscconv::scconv', 'cpu')(native.scconv)
torch.library.impl('mmscconv::sru_squeeze', 'cpu')(native.sru_squeeze)
torch.library.impl('mmscconv::sru_squeeze_backward', 'cpu')(native.sru_squeeze_backward)
torch.library.impl('mmscconv::transform_fuse', 'cpu')(native.transform_fuse)
torch.library.impl('mmscconv::transform_fuse_backward', 'cpu')(native.transform_fuse_backward)


@torch.library.register_fake('mmscconv::scconv')
def _scconv_fake(x: Tensor, *arguments: Any) -> Tensor:
    channels, window = arguments[8], arguments[10]
    size = native.pooled_size(x.shape[2:], window[2:4])
    return torch.empty(len(x), channels[3], *size, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake('mmscconv::sru_squeeze')
def _sru_squeeze_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    n, _, h, w = x.shape
    branches = [
        torch.empty(n, len(weight), *size, device=x.device, memory_format=torch.channels_last)
        for weight, size in ((arguments[6], (h, w)), (arguments[7], native.pooled_size((h, w), arguments[10])))
    ]
    return *branches, *(x.new_empty(n, arguments[2]) for _ in range(2))


@torch.library.register_fake('mmscconv::sru_squeeze_backward')
def _sru_squeeze_backward_fake(_: Tensor, __: Tensor, x: Tensor, scale: Tensor, *others: Any) -> tuple[Tensor, ...]:
    grad_x = torch.empty(x.shape, device=x.device, memory_format=torch.channels_last)
    return grad_x, *(torch.empty_like(t) for t in (scale, *others[:1], *others[3:5]))


@torch.library.register_fake('mmscconv::transform_fuse')
def _transform_fuse_fake(_: Tensor, __: Tensor | None, low: Tensor, gwc: Tensor, *___: Any) -> tuple[Tensor, Tensor]:
    n, _l, h, w = low.shape
    out = torch.empty(n, len(gwc), h, w, device=low.device, memory_format=torch.channels_last)
    return out, low.new_empty(n, len(gwc))


def _keep_for_squeeze(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, shift, _, _, ctx.threshold, ctx.hard, up, low, *biases, ctx.pool = inputs
    ctx.biased = [bias is not None for bias in biases]
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, shift, mean, rstd, up, low)


def _squeeze_backward(ctx: Any, grad_up: Tensor, grad_low: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if tuple(ctx.pool) != (1, 1):
        raise RuntimeError(FOR_INFERENCE)
    done = torch.ops.mmscconv.sru_squeeze_backward(grad_up, grad_low, *ctx.saved_tensors, ctx.threshold, ctx.hard)
    *grads, grad_weight_up, grad_weight_low = done
    pairs = zip((grad_up, grad_low), ctx.biased, strict=True)
    biases = [grad.sum(dim=(0, 2, 3)) if biased else None for grad, biased in pairs]
    return *grads, None, None, None, None, grad_weight_up, grad_weight_low, *biases, None


torch.library.register_autograd('mmscconv::sru_squeeze', _squeeze_backward, setup_context=_keep_for_squeeze)


@torch.library.register_fake('mmscconv::transform_fuse_backward')
def _transform_fuse_backward_fake(_: Tensor, x_up: Tensor, up: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    inputs = [
        x_up.new_empty(0) if t is None else torch.empty(t.shape, device=t.device, memory_format=torch.channels_last)
        for t in (x_up, up, others[0])
    ]
    gwc, *more = others[1:6]
    grad_gwc = torch.empty(gwc.shape, device=gwc.device, memory_format=torch.channels_last)
    return *inputs, grad_gwc, *(x_up.new_empty(0 if t is None else t.shape) for t in more)


def _keep_for_transform(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.groups, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _transform_backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = torch.ops.mmscconv.transform_fuse_backward(grad, *saved, ctx.groups, ctx.window)
    return *(None if t is None else grad for grad, t in zip(grads, saved, strict=False)), None, None


torch.library.register_autograd('mmscconv::transform_fuse', _transform_backward, setup_context=_keep_for_transform)
