"""A whole SCConv in its deploy form: the CPU op for channels-last fp32, for inference only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmscconv.ops import native
from mmscconv.ops.gradients import FOR_INFERENCE, register_kernel
from mmscconv.ops.layout import empty_channels_last
from mmscconv.ops.window import Window, pooled_size


def scconv(
    x: Tensor,
    arguments: tuple[Tensor, Tensor, int, float, float, bool],
    squeezes: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    transform: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    channels: tuple[int, int, int, int, int],
    window: Window,
    centre: int | None,
    relu: bool,
    weights: Sequence[Tensor] | None = None,
    fingerprint: int = 0,
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
        weights: Those that were packed: of the squeezes of the upper and the lower branch, GWC, PWC1 and PWC2. Where
            they are given and are no longer what ``fingerprint`` says, they are packed anew for this call: a compiled
            graph sees changed weights, too.
        fingerprint: Of the weights when they were packed, from :func:`mmscconv.ops.packing.fingerprint`.

    Returns:
        (N, C2, H', W'), channels last.
    """
    return torch.ops.mmscconv.scconv(
        x, *arguments, squeezes, transform, channels, window.groups, window.numbers, centre, relu, weights, fingerprint
    )


torch.library.define(
    'mmscconv::scconv',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, Tensor?[] squeezes,'
    ' Tensor?[] transform, int[] channels, int groups, int[] window, int? centre, bool relu,'
    ' Tensor[]? weights=None, int fingerprint=0) -> Tensor',
)
register_kernel('scconv', 'cpu', native.scconv)


@torch.library.register_fake('mmscconv::scconv')
def _scconv_fake(x: Tensor, *arguments: Any) -> Tensor:
    channels, window = arguments[8], arguments[10]
    size = pooled_size(x.shape[2:], window[2:4])
    return empty_channels_last((len(x), channels[3], *size), x.device)


def _backward(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError(FOR_INFERENCE)


torch.library.register_autograd('mmscconv::scconv', _backward)
