"""GhostConv, the Ghost module of "GhostNet: More Features from Cheap Operations" (CVPR 2020).

The primary convolution is 1x1 whatever the replaced convolution was: that is the
module's usual setting, and the SCConv paper's counts for ResNet-56 and
DenseNet-121 need it. At a stride, the average pooling before it is our choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Device, Size2d
from mmscconv.layers.conv_like import Conv2dLike


class GhostConv(Conv2dLike):
    """C2/s intrinsic maps by a convolution, the others from them by depth-wise convolutions.

    ::

        P = relu(BN(primary(X)))            # C2/s channels, rounded up
        Y = cat(P, relu(BN(cheap(P))))      # the first C2 of them

    Parameters at s = 2, C1 = C2 = C, 1x1 primary, 3x3 cheap: 0.5 C^2 + 6.5 C.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.
        ratio: s, at least 2.
        cheap_kernel_size: Odd size of the depth-wise convolutions.
        pointwise: Make the primary convolution 1x1, on the input average-pooled to
            the output's size; otherwise it has the replaced convolution's window.

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2 channels.

    Raises:
        ValueError: ``ratio`` below 2 or above C2, an even ``cheap_kernel_size``.
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
        ratio: int = 2,
        cheap_kernel_size: int = 3,
        pointwise: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        if not 2 <= ratio <= out_channels:
            raise ValueError(f'GhostConv: ratio must lie in [2, out_channels={out_channels}], got ratio={ratio}')
        if cheap_kernel_size < 1 or cheap_kernel_size % 2 == 0:
            raise ValueError(f'GhostConv: cheap_kernel_size must be odd, got {cheap_kernel_size}')
        self.ratio = ratio
        intrinsic = -(-out_channels // ratio)
        ghosts = intrinsic * (ratio - 1)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        if pointwise:
            primary = [AlignedAvgPool2d(*self.window), nn.Conv2d(in_channels, intrinsic, 1, bias=False, **factory)]
        else:
            primary = [nn.Conv2d(in_channels, intrinsic, *self.inner_window, bias=False, **factory)]
        cheap = nn.Conv2d(
            intrinsic,
            ghosts,
            cheap_kernel_size,
            padding=cheap_kernel_size // 2,
            groups=intrinsic,
            bias=False,
            **factory,
        )
        self.primary = nn.Sequential(*primary, nn.BatchNorm2d(intrinsic, **factory), nn.ReLU(inplace=True))
        self.cheap = nn.Sequential(cheap, nn.BatchNorm2d(ghosts, **factory), nn.ReLU(inplace=True))

    def transform(self, x: Tensor) -> Tensor:
        intrinsic = self.primary(x)
        return torch.cat((intrinsic, self.cheap(intrinsic)), dim=1)[:, : self.out_channels]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, ratio={self.ratio}'
