"""The division of a map's channels, with a gradient in channels last for maps in channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.ops.backend import becoming_graph, observed, transformed
from mmscconv.ops.layout import as_dense, layout_of


def split_channels(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the parts of ``sizes`` channels of ``x``: the views, and the gradients, of ``x.split(sizes, dim=1)``.

    The gradient of PyTorch's split is in NCHW, whatever the layout of the map and of the parts' gradients. What stands
    before the split then reads one layout and writes the other: in ResNet-20 with SPConv, ReLU's backward takes five
    times as long. Here the gradient of a map in channels last is in channels last. Maps in NCHW, other classes of
    tensors, graphs, dispatch and function modes and torch.func's transforms get PyTorch's split.

    Args:
        x: (N, C, ...).
        sizes: Channels of each part, C in all.
    """
    if (
        type(x) in (Tensor, nn.Parameter)
        and x.requires_grad
        and torch.is_grad_enabled()
        and not becoming_graph()
        and not transformed()
        and not observed()
        and x.dim() == 4
        and layout_of(x) is torch.channels_last
    ):
        parts: tuple[Tensor, ...] = _SplitInChannelsLast.apply(x, tuple(sizes))
        return parts
    return x.split(tuple(sizes), dim=1)


class _SplitInChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return x.split(sizes, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if transformed() or any(map(torch._C._functorch.is_legacy_batchedtensor, grads)):
            # A batch of gradients, as of torch.vmap and is_grads_batched, cannot be asked for its layout.
            return torch.cat(grads, dim=1), None
        # A part that nothing uses has zeros in NCHW, and cat takes one such part, or one of a single channel, for NCHW.
        grad = torch.cat([as_dense(part, torch.channels_last) for part in grads], dim=1)
        return as_dense(grad, torch.channels_last), None
