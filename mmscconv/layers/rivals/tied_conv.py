"""TiedConv, "Tied Block Convolution: Leaner and Better CNNs with Shared Thinner Filters" (AAAI 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from mmscconv.layers.arguments import Size2d, check_input, window_of
from mmscconv.layers.conv_like import check_dense


class TiedConv(nn.Conv2d):
    """One thin convolution, shared by ``blocks`` equal blocks of channels.

    Block b of the output is conv(block b of the input): a convolution with B
    groups whose filters are the same in each group. k*k*C1*C2/B^2 parameters,
    1/B of the work; B = 1 is ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As
            ``nn.Conv2d``'s.
        groups: Must be 1; the method's groups are ``blocks``.
        bias: Add a bias, shared by the blocks like the filters.
        blocks: B.

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2 channels;
        ``weight`` is (C2/B, C1/B, k, k).

    Raises:
        ValueError: Channels that ``blocks`` does not divide, ``groups`` other than
            1, other arguments out of range, an input of another shape.
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
        *,
        blocks: int = 2,
    ) -> None:
        check_dense('TiedConv', in_channels, out_channels, groups)
        if blocks < 1 or in_channels % blocks or out_channels % blocks:
            raise ValueError(
                f'TiedConv: in_channels={in_channels} and out_channels={out_channels} must be multiples of '
                f'blocks={blocks}'
            )
        window = window_of(kernel_size, stride, padding, dilation)
        super().__init__(in_channels // blocks, out_channels // blocks, *window, bias=bias)
        self.in_channels, self.out_channels, self.blocks = in_channels, out_channels, blocks

    def forward(self, x: Tensor) -> Tensor:
        check_input('TiedConv', x, self.in_channels)
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        n, b = x.shape[0], self.blocks
        y = super().forward(x.unflatten(1, (b, self.in_channels // b)).flatten(0, 1))
        return y.unflatten(0, (n, b)).flatten(1, 2)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, blocks={self.blocks}'
