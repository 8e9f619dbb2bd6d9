"""A whole SCConv in its deploy form: the CPU op for channels-last fp32 and bf16, for inference only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmscconv.ops import native
from mmscconv.ops.backend import choose_backend, fits
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
    """Run :func:`sru_squeeze` and :func:`transform_fuse` one after the other, for inference only.

    Args:
        x: (N, C, H, W), fp32 or bf16. Maps between the convolutions have this dtype, too; the arithmetic is fp32, with
            AMX but for the products of bf16 values.
        arguments: As :func:`sru_squeeze`'s.
        squeezes: Both weights from :func:`mmscconv.ops.packing.packed`, and both biases.
        transform: The weights from :func:`mmscconv.ops.packing.packed_transform`, the biases of Y1 and of PWC2, and
            scale and shift (C2) of a norm behind the layer.
        channels: The upper branch's part of C, u, l, C2, and PWC2's output channels.
        window: The GWC's settings; the inputs of PWC1 and of the lower squeeze are average-pooled by its stride, with
            windows side by side.
        centre: The tap that includes PWC1, or None.
        relu: Whether to end in a ReLU.
        weights: The weights that were packed: upper and lower squeeze, GWC, PWC1 and PWC2. If their checksum is no
            longer ``fingerprint``, this call packs them anew: a compiled graph sees changed weights, too.
        fingerprint: Checksum of the weights when they were packed, from :func:`mmscconv.ops.packing.fingerprint`.

    Returns:
        (N, C2, H', W'), channels last, of the dtype of ``x``.
    """
    return torch.ops.mmscconv.scconv(
        x, *arguments, squeezes, transform, channels, window.groups, window.numbers, centre, relu, weights, fingerprint
    )


def scconv_runs_on(x: Tensor, backend: str | None, packed: Tensor) -> bool:
    """Return whether :func:`scconv` may run now on an input like ``x``: on a CPU, and while no gradients are recorded.

    Args:
        x: (N, C, H, W).
        backend: The explicit choice, or None.
        packed: The packed weights of the transform, which have to be fp32.
    """
    if choose_backend(x, backend, beyond_fusion=True) != 'native' or torch.is_grad_enabled():
        return False
    return packed.dtype is torch.float32 and fits(x)


torch.library.define(
    'mmscconv::scconv',
    '(Tensor x, Tensor scale, Tensor shift, int num_groups, float eps, float threshold, bool hard, Tensor?[] squeezes,'
    ' Tensor?[] transform, int[] channels, int groups, int[] window, int? centre, bool relu,'
    ' Tensor[]? weights=None, int fingerprint=0) -> Tensor',
)
register_kernel('scconv', 'cpu', native.scconv)


@torch.library.register_fake('mmscconv::scconv')
def _scconv_fake(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool,
    squeezes: Sequence[Tensor | None],
    transform: Sequence[Tensor | None],
    channels: Sequence[int],
    groups: int,
    window: Sequence[int],
    *_: Any,
) -> Tensor:
    size = pooled_size(x.shape[2:], window[2:4])
    return empty_channels_last((len(x), channels[3], *size), x.device, x.dtype)


def _backward(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError(FOR_INFERENCE)


torch.library.register_autograd('mmscconv::scconv', _backward)
