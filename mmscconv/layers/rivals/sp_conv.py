"""SPConv, "Split to Be Slim: An Overlooked Redundancy in Vanilla Convolution" (IJCAI 2020).

Choices that its text leaves open follow the counts that the SCConv paper prints
for SPConv: a norm on each branch, a bias on the 1x1 of the redundant part,
average pooling in front of the 1x1s where the layer is strided. The place of the
pooling windows for other paddings is our choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Device, Size2d, floor_product
from mmscconv.layers.conv_like import Conv2dLike
from mmscconv.layers.norms_first import NormsFirst
from mmscconv.ops import fuse, split_channels


class SPConv(NormsFirst, Conv2dLike):
    """k x k work for the representative part of the channels, 1x1 for the redundant rest.

    With X_r the first alpha*C1 channels and X_c the others::

        Y1 = BN(gwc(X_r) + pwc(pool(X_r)))
        Y2 = BN(cheap(pool(X_c)))
        Y  = beta1 * Y1 + beta2 * Y2,  beta = softmax over m of mean_HW(Y_m)

    Parameters at alpha = 1/2, k = 3, C1 = C2 = C: 3.25 C^2 + 5 C.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.
        alpha: Share of the representative channels, inside (0, 1).
        gwc_groups: Groups of the k x k convolution.

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2 channels.

    Raises:
        ValueError: An empty part, or channels that ``gwc_groups`` does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Size2d | str = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = 'zeros',
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 0.5,
        gwc_groups: int = 2,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.representative = floor_product(alpha, in_channels)
        redundant = in_channels - self.representative
        if not 0 < self.representative < in_channels:
            raise ValueError(
                f'SPConv needs both parts: alpha={alpha} divides {in_channels} channels '
                f'into {self.representative} and {redundant}'
            )
        if gwc_groups < 1 or self.representative % gwc_groups or out_channels % gwc_groups:
            raise ValueError(
                f'SPConv: floor(alpha * in_channels) = {self.representative} and out_channels = {out_channels} '
                f'must both be multiples of gwc_groups = {gwc_groups}'
            )
        self.alpha = alpha
        self.pool = AlignedAvgPool2d(*self.window)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.gwc = nn.Conv2d(
            self.representative, out_channels, *self.inner_window, groups=gwc_groups, bias=False, **factory
        )
        self.pwc = nn.Conv2d(self.representative, out_channels, 1, bias=False, **factory)
        self.cheap = nn.Conv2d(redundant, out_channels, 1, **factory)
        self.norm1, self.norm2 = nn.BatchNorm2d(out_channels, **factory), nn.BatchNorm2d(out_channels, **factory)

    def transform(self, x: Tensor) -> Tensor:
        x_r, x_c = split_channels(x, (self.representative, self.in_channels - self.representative))
        y1 = self.norm1(self.gwc(x_r) + self.pwc(self.pool(x_r)))
        y2 = self.norm2(self.cheap(self.pool(x_c)))
        return fuse(y1, y2)  # CRU's fusion is SPConv's

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}'
