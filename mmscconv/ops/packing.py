"""The weights of convolutions in the order in which the CPU kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

PANEL = 32  # as csrc/gemm.h has it


def packed(weight: Tensor, groups: int = 1) -> Tensor:
    """Return (J, ...) weights in the kernels' panels, (panels, K, PANEL).

    Panels are PANEL output channels wide, filled up with zeros, and never hold
    channels of two groups.
    """
    rows = weight.detach().flatten(1).unflatten(0, (groups, -1))
    rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % PANEL))
    return rows.unflatten(1, (-1, PANEL)).flatten(0, 1).transpose(1, 2).contiguous()


def centre_of(window: Sequence[int]) -> int | None:
    """Return the tap that sees the position of its output, as kernel size, stride, padding and dilation have it."""
    (height, width), stride, padding, dilation = (tuple(window[i : i + 2]) for i in (0, 2, 4, 6))
    (y, more_y), (x, more_x) = (divmod(p, d) for p, d in zip(padding, dilation, strict=True))
    if stride != (1, 1) or more_y or more_x or y >= height or x >= width:
        return None
    return y * width + x


def packed_transform(gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> Tensor:
    """Return the weights of a CRU's transform as :func:`packed` does."""
    return packed(transform_rows(gwc, pwc1, pwc2, groups, centre), groups)


def transform_rows(
    gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None, multiple: int = 1
) -> Tensor:
    """Return a row (K) for each output channel: what PWC2, PWC1 and the GWC's taps multiply, one after the other.

    PWC2's part is the identity where X_low itself is Y2. PWC1 is part of the tap
    ``centre`` where that is given, which then sees all channels. Zeros fill up K to a
    ``multiple``.
    """
    parts = _Parts.of(gwc, pwc2, groups, centre)
    gwc, pwc1, pwc2 = gwc.detach(), pwc1.detach(), pwc2.detach()
    rows = gwc.new_zeros(len(gwc), -(-parts.end // multiple) * multiple)
    rows[: len(pwc2), parts.pwc2] = pwc2.flatten(1)
    rows[len(pwc2) :, parts.pwc2].fill_diagonal_(1)
    rows[:, parts.pwc1] = pwc1.flatten(1)
    taps = gwc.permute(0, 2, 3, 1).flatten(1)  # tap by tap: without a copy where the weights lie channels last
    rows[:, parts.before] = taps[:, : parts.taps_before]
    rows[:, parts.after] = taps[:, parts.taps_after :]
    if centre is not None:
        _blocks(rows[:, parts.pwc1], groups).add_(_blocks_of_tap(taps[:, parts.taps_before : parts.taps_after], groups))
    return rows


def weights_of_rows(
    rows: Tensor, gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what of gradients of :func:`transform_rows` belongs to each weight, in its shape; GWC's channels last."""
    parts = _Parts.of(gwc, pwc2, groups, centre)
    c, each, height, width = gwc.shape
    taps = rows.new_empty(c, height, width, each)
    flat = taps.view(c, -1)
    flat[:, : parts.taps_before] = rows[:, parts.before]
    flat[:, parts.taps_after :] = rows[:, parts.after]
    if centre is not None:
        tap = flat[:, parts.taps_before : parts.taps_after]
        _blocks_of_tap(tap, groups).copy_(_blocks(rows[:, parts.pwc1], groups))
    of_pwc1, of_pwc2 = rows[:, parts.pwc1].clone(), rows[: len(pwc2), parts.pwc2].clone()
    return taps.permute(0, 3, 1, 2), of_pwc1.view(pwc1.shape), of_pwc2.view(pwc2.shape)


class _Parts(NamedTuple):
    """The columns of :func:`transform_rows`; GWC's taps lie in two parts, before and after what is done with PWC1."""

    pwc2: slice
    before: slice
    pwc1: slice
    after: slice
    taps_before: int  # columns of GWC's own, (taps, u / g)
    taps_after: int
    end: int

    @classmethod
    def of(cls, gwc: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> _Parts:
        each, low = gwc.shape[1], pwc2.shape[1]
        before = 0 if centre is None else centre * each
        after = before if centre is None else before + each
        pwc1 = low + before
        tail = pwc1 + groups * each
        end = tail + gwc[0].numel() - after
        return cls(slice(low), slice(low, pwc1), slice(pwc1, tail), slice(tail, end), before, after, end)


def _blocks(rows: Tensor, groups: int) -> Tensor:
    """Return of (C, u) the blocks that belong to GWC's groups, (C / g, u / g, g)."""
    return rows.unflatten(0, (groups, -1)).unflatten(2, (groups, -1)).diagonal(dim1=0, dim2=2)


def _blocks_of_tap(tap: Tensor, groups: int) -> Tensor:
    """Return a tap, (C, u / g), in the order of :func:`_blocks`."""
    return tap.unflatten(0, (groups, -1)).permute(1, 2, 0)
