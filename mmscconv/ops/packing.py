"""The weights of convolutions in the order in which the CPU kernels read them (``csrc/packing.c``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mmscconv.ops.compiled import call, unavailable
from mmscconv.ops.layout import empty
from mmscconv.ops.prototypes import MAP_DTYPES

PANEL = 32  # the same as in csrc/gemm.h


def bf16_as_fp32(t: Tensor) -> Tensor:
    """Return bf16 weights in fp32, others as they are."""
    return t.float() if t.dtype is torch.bfloat16 else t


def can_pack(*weights: Tensor) -> bool:
    """Return whether the functions of this module take ``weights``: fp32 or bf16 on the CPU, where the kernels run.

    Tensor subclasses (FakeTensor, for example) are refused: they may own no memory.
    """
    fitting = all(type(t) is Tensor and t.device.type == 'cpu' and t.dtype in MAP_DTYPES for t in weights)
    return fitting and unavailable() is None


def panels_of(channels: int) -> int:
    """Return how many panels hold ``channels`` output channels."""
    return -(-channels // PANEL)


def packed(weight: Tensor, groups: int = 1) -> Tensor:
    """Return (J, K) or (J, K, 1, 1) weights in the kernels' panels, (panels, K, PANEL).

    Panels are PANEL output channels wide, padded with zeros, and never hold
    channels of two groups.
    """
    weight = bf16_as_fp32(weight)
    (rows, depth), strides = weight.shape[:2], weight.stride()[:2]
    out = empty(groups * panels_of(rows // groups), depth, PANEL)
    call('pack', weight, *strides, rows, depth, groups, out)
    return out


def fingerprint(weights: Sequence[Tensor]) -> int:
    """Return a 64-bit checksum of fp32 or bf16 CPU weights: of all bits, their places, shapes and strides.

    The number of threads does not change it. A change of one value always does; another change is missed once in 2^64.
    """
    total = (ctypes.c_int64 * 1)()
    for weight in weights:
        if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
            weight = weight.contiguous()
        numbers = (*weight.shape, *weight.stride())
        array = (ctypes.c_int64 * len(numbers))(*numbers)
        is_bf16 = weight.dtype is torch.bfloat16
        call('fingerprint', weight, weight.numel(), array, len(numbers), is_bf16, torch.get_num_threads(), total)
    return total[0]


def packed_transform(gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> Tensor:
    """Return the rows of :func:`transform_rows` in panels."""
    gwc, pwc1, pwc2 = _inputs(gwc, pwc1, pwc2)
    panels = groups * panels_of(len(gwc) // groups)
    out = empty(panels, _depth(gwc, pwc2, groups, centre), PANEL)
    call('pack_transform', gwc, pwc1, pwc2, _numbers(gwc, pwc2, groups, centre), torch.get_num_threads(), out)
    return out


def transform_rows(gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> Tensor:
    """Return one row of weights per output channel: those of PWC2, PWC1 and the GWC's taps, one after the other.

    PWC2's part is the identity for channels of Y2 that copy X_low. If ``centre`` is
    given, PWC1 is part of that tap, which then sees all channels. Zeros pad a row to
    a multiple of PANEL.
    """
    gwc, pwc1, pwc2 = _inputs(gwc, pwc1, pwc2)
    depth = _depth(gwc, pwc2, groups, centre)
    out = empty(len(gwc), -(-depth // PANEL) * PANEL)
    numbers = _numbers(gwc, pwc2, groups, centre)
    call('transform_rows', gwc, pwc1, pwc2, numbers, out.shape[1], torch.get_num_threads(), out)
    return out


def weights_of_rows(
    rows: Tensor, gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Split gradients of :func:`transform_rows` into those of each weight, in its shape; GWC's in channels last."""
    grads = empty(*gwc.shape, layout=torch.channels_last), empty(*pwc1.shape), empty(*pwc2.shape)
    numbers = _numbers(gwc, pwc2, groups, centre)
    call('weights_of_rows', rows, rows.shape[1], numbers, torch.get_num_threads(), *grads)
    return grads


def _inputs(gwc: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return the weights as the kernels can read them, in fp32: the GWC's taps a stride apart, the others dense."""
    gwc, others = bf16_as_fp32(gwc), tuple(map(bf16_as_fp32, others))
    return gwc if _tap_stride(gwc) is not None else gwc.contiguous(), *(t.contiguous() for t in others)


def _tap_stride(gwc: Tensor) -> int | None:
    """Return how far apart the taps lie, None if not all as far; the stride of an axis of length 1 means nothing."""
    (height, width), (line, tap) = gwc.shape[2:], gwc.stride()[2:]
    if width == 1:
        return line
    return tap if height == 1 or line == width * tap else None


def _depth(gwc: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> int:
    """Return the length of a row."""
    taps = gwc[0, 0].numel() - (centre is not None)
    return pwc2.shape[1] + gwc.shape[1] * (groups + taps)


def _numbers(gwc: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> ctypes.Array[ctypes.c_int64]:
    """Return the GWC's strides by output channel, tap and input channel; C, u, l, PWC2's, groups, taps, centre."""
    c, per_group, height, width = gwc.shape
    row, channel, tap = *gwc.stride()[:2], _tap_stride(gwc)
    assert tap is not None, 'the weight is not one of _inputs'
    pwc2_channels, low = pwc2.shape[:2]
    taps, u = height * width, groups * per_group
    numbers = (row, tap, channel, c, u, low, pwc2_channels, groups, taps, -1 if centre is None else centre)
    return (ctypes.c_int64 * len(numbers))(*numbers)
