"""The two CPU ops that reach over convolutions, for channels-last fp32.

X^w then never leaves the caches, and in the deploy form the outputs of the GWC, PWC1 and PWC2
neither. Where :func:`fits` or :func:`runs_on` says no, the layers compose the same
from the other ops.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def sru_squeeze(
    x: Tensor,
    arguments: tuple[Tensor, Tensor, int, float, float, bool],
    up: Tensor,
    low: Tensor,
    packed_up: Tensor | None = None,
    packed_low: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return X_up and X_low, (N, u, H, W) and (N, l, H, W), of the SRU's output, which backward computes again.

    Args:
        x: (N, C, H, W).
        arguments: ``scale, shift, num_groups, eps, threshold, hard`` of :func:`mmscconv.ops.sru.sru`.
        up, low: The squeezes' weights, (u, C_up, 1, 1) and (l, C - C_up, 1, 1).
        packed_up, packed_low: The same from :func:`mmscconv.ops.native.packed`, which each call does otherwise.
    """
    return torch.ops.mmscconv.sru_squeeze(x, *arguments, up, low, packed_up, packed_low)[:2]


@dataclass(frozen=True)
class Transform:
    """The window and channels of a CRU's transform: what its kernel needs besides tensors.

    Args:
        channels: C2.
        made: Channels of Y2 that PWC2 makes; the others are X_low's.
        groups, kernel_size, stride, dilation: Of the GWC.
        padding: Rows above and columns left of the image, both zeros.
    """

    channels: int
    made: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def packed(self, gwc: Tensor, pwc1: Tensor, pwc2: Tensor) -> Tensor:
        """Return the weights of all three convolutions as :func:`mmscconv.ops.native.packed` does.

        Each output channel has what PWC2, PWC1 and the GWC's taps multiply, one after
        the other; PWC2's part is the identity where X_low itself is Y2.
        """
        copied = torch.eye(pwc2.shape[1]).to(pwc2)[: self.channels - self.made]
        parts = (
            torch.cat((pwc2.flatten(1), copied)),
            pwc1.flatten(1),
            gwc.flatten(2).transpose(1, 2).flatten(1),  # tap by tap
        )
        return native.packed(torch.cat(parts, dim=1), self.groups)


def transform_fuse(
    x_up: Tensor,
    up: Tensor,
    low: Tensor,
    transform: Transform,
    packed: Tensor,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return ``fuse(gwc(x_up), low, pwc1(up), pwc2(low), scale, shift)``, of which only the result is written.

    Args:
        x_up: (N, u, H, W), the GWC's input.
        up, low: (N, u, H', W') and (N, l, H', W'), the 1x1 convolutions' inputs.
        packed: From ``transform.packed``.
        bias1, bias2: (C) of Y1 and (made) of PWC2.
        scale, shift: (C) of a norm behind the layer.
        relu: Whether a ReLU ends it.

    Returns:
        (N, C, H', W'), channels last.
    """
    t = transform
    window = (*t.kernel_size, *t.stride, *t.padding, *t.dilation)
    return torch.ops.mmscconv.transform_fuse(
        x_up, up, low, packed, bias1, bias2, scale, shift, t.channels, t.made, t.groups, window, relu
    )


torch.library.define(
    'mmscconv::sru_squeeze',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, Tensor up,'
    ' Tensor low, Tensor? packed_up, Tensor? packed_low) -> (Tensor, Tensor, Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::sru_squeeze_backward',
    '(Tensor grad_up, Tensor grad_low, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor rstd, Tensor up,'
    ' Tensor low, float threshold, bool hard) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::transform_fuse',
    '(Tensor x_up, Tensor up, Tensor low, Tensor packed, Tensor? bias1, Tensor? bias2, Tensor? scale, Tensor? shift,'
    ' int channels, int made, int groups, int[] window, bool relu) -> Tensor',
)
torch.library.impl('mmscconv::sru_squeeze', 'cpu')(native.sru_squeeze)
torch.library.impl('mmscconv::sru_squeeze_backward', 'cpu')(native.sru_squeeze_backward)
torch.library.impl('mmscconv::transform_fuse', 'cpu')(native.transform_fuse)


@torch.library.register_fake('mmscconv::sru_squeeze')
def _sru_squeeze_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    n, _, h, w = x.shape
    branches = [
        torch.empty(n, len(weight), h, w, device=x.device, memory_format=torch.channels_last)
        for weight in arguments[6:8]
    ]
    return *branches, *(x.new_empty(n, arguments[2]) for _ in range(2))


@torch.library.register_fake('mmscconv::sru_squeeze_backward')
def _sru_squeeze_backward_fake(_: Tensor, __: Tensor, x: Tensor, scale: Tensor, *others: Any) -> tuple[Tensor, ...]:
    grad_x = torch.empty(x.shape, device=x.device, memory_format=torch.channels_last)
    return grad_x, *(torch.empty_like(t) for t in (scale, *others[:1], *others[3:5]))


@torch.library.register_fake('mmscconv::transform_fuse')
def _transform_fuse_fake(x_up: Tensor, up: Tensor, *arguments: Any) -> Tensor:
    channels = arguments[6]
    n, _, h, w = up.shape
    return torch.empty(n, channels, h, w, device=up.device, memory_format=torch.channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, shift, _, _, ctx.threshold, ctx.hard, up, low, _, _ = inputs
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, shift, mean, rstd, up, low)


def _squeeze_backward(ctx: Any, grad_up: Tensor, grad_low: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    done = torch.ops.mmscconv.sru_squeeze_backward(grad_up, grad_low, *ctx.saved_tensors, ctx.threshold, ctx.hard)
    *grads, grad_weight_up, grad_weight_low = done
    return *grads, None, None, None, None, grad_weight_up, grad_weight_low, None, None


torch.library.register_autograd('mmscconv::sru_squeeze', _squeeze_backward, setup_context=_setup_context)
