"""What every layer that stands in for a dense ``nn.Conv2d`` has in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscconv.layers.arguments import Size2d, Window, check_input, whole, window_of


class Conv2dLike(nn.Module):
    """A module with ``nn.Conv2d``'s argument order and attributes; subclasses define :meth:`transform`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As
            ``nn.Conv2d``'s.
        groups: Must be 1: these layers take the place of a dense convolution.
        bias: Add one bias per output channel behind everything else.

    Shape:
        Input (N, in_channels, H, W) or (in_channels, H, W); output as
        ``nn.Conv2d``'s.

    Raises:
        ValueError: ``groups`` other than 1, other arguments out of range, an
            input of another shape.
    """

    padding_mode = 'zeros'
    transposed = False
    output_padding = (0, 0)

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
    ) -> None:
        super().__init__()
        check_dense(type(self).__name__, in_channels, out_channels, groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = window_of(kernel_size, stride, padding, dilation)
        self.groups = 1
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def window(self) -> Window:
        """(kernel_size, stride, padding, dilation): what decides the output's size."""
        return self.kernel_size, self.stride, self.padding, self.dilation

    def transform(self, x: Tensor) -> Tensor:
        """Return the output without the bias for a checked (N, in_channels, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_input(type(self).__name__, x, self.in_channels)
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        y = self.transform(x)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding!r}, dilation={self.dilation}, bias={self.bias is not None}'
        )


def check_dense(layer: str, in_channels: int, out_channels: int, groups: int) -> None:
    """Raise ValueError unless the arguments are those of a dense convolution."""
    whole('in_channels', in_channels)
    whole('out_channels', out_channels)
    if groups != 1:
        raise ValueError(f'{layer} is dense: groups must be 1, got {groups}')
