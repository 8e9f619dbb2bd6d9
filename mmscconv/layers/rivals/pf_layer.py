"""PFLayer, the max pool of "Learning Features with Parameter-Free Layers" (ICLR 2022) in the place of a convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv.layers.arguments import Device, Size2d, check_input, check_window, padding_amounts
from mmscconv.layers.conv_like import Conv2dLike


class PFLayer(Conv2dLike):
    """The maximum over the convolution's window, channel by channel: no weights, no multiply-adds.

    A window reads the pixels of the image alone; padding only places it, as in ``nn.MaxPool2d``.
    That the window is the replaced convolution's, stride and dilation included, is our choice;
    their R50-max has 3x3 windows alone.

    Args:
        in_channels, out_channels: Equal, for a pool mixes no channels.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.

    Shape:
        (N, C, H, W) or (C, H, W) to ``nn.Conv2d``'s output with C channels.

    Raises:
        ValueError: Another number of output channels, so much padding that a window would read no pixel, or an
            input that is smaller than the window or the dilation.
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
    ) -> None:
        if in_channels != out_channels:
            raise ValueError(
                f'PFLayer is a pool, which keeps the number of channels, got in_channels={in_channels} and '
                f'out_channels={out_channels}: put a 1x1 convolution behind a PFLayer of {in_channels} channels'
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        amounts = padding_amounts(self.padding, self.kernel_size, self.stride, self.dilation)
        for side, k, d in zip(amounts, self.kernel_size, self.dilation, strict=True):
            if max(side) > d * (k - 1):
                raise ValueError(
                    f'PFLayer: with padding={self.padding}, a window of kernel_size={self.kernel_size} and '
                    f'dilation={self.dilation} can lie outside of the image: choose less padding'
                )

    def transform(self, x: Tensor) -> Tensor:
        check_input('PFLayer', x, self.in_channels, self.bias)
        padding = padding_amounts(self.padding, self.kernel_size, self.stride, self.dilation)
        check_window(x.shape[2:], self.kernel_size, padding, self.dilation)
        if any(sum(p) and size < d for p, size, d in zip(padding, x.shape[2:], self.dilation, strict=True)):
            raise ValueError(f'PFLayer: dilation={self.dilation} steps over the whole input {tuple(x.shape[2:])}')
        (top, bottom), (left, right) = padding
        amount = top, left
        # nn.MaxPool2d pads equally, and by half a kernel at most.
        if amount != (bottom, right) or any(2 * p > k for p, k in zip(amount, self.kernel_size, strict=True)):
            x, amount = F.pad(x, (left, right, top, bottom), value=float('-inf')), (0, 0)
        return F.max_pool2d(x, self.kernel_size, self.stride, amount, self.dilation)
