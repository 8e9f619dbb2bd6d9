"""OctConv, "Drop an Octave: Reducing Spatial Redundancy in CNNs with Octave Convolution" (ICCV 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Device, Size2d, conv_window, floor_product, numeric_padding
from mmscconv.layers.conv_like import Conv2dLike
from mmscconv.layers.no_weight import NoWeight

Octave = tuple[Tensor, Tensor | None]


def low_channels(channels: int, alpha: float) -> int:
    """Return how many of ``channels`` have half the resolution; raise ValueError unless in [0, channels)."""
    low = floor_product(alpha, channels)
    if not 0 <= low < channels:
        raise ValueError(f'OctConv: alpha={alpha} makes {low} of {channels} channels low; it must leave some high')
    return low


def halve(x: Tensor) -> Tensor:
    """Average 2 x 2 positions; the last row or column of an odd size stands alone."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class OctaveConv2d(NoWeight):
    """The paper's convolution between pairs (high, low) of maps, low at half the resolution.

    ::

        high' = hh(high) + up(lh(low))
        low'  = hl(halve(high)) + ll(low)

    with "same" padding. At stride 2, ``high`` is averaged first, as is ``low`` for
    ``ll``; ``lh`` needs no ``up``, since low already has the new high resolution.

    Args:
        in_channels, out_channels: Channels of both resolutions together.
        kernel_size, dilation: As ``nn.Conv2d``'s.
        stride: 1 or 2.
        alpha_in, alpha_out: Share of the low channels in [0, 1); at 0 that side
            has no low map (None).
        device, dtype: Device and dtype of the weights.

    Shape:
        (N, C1h, H, W), (N, C1l, ceil(H/2), ceil(W/2)) to the same with C2 channels
        and, at stride 2, half the size.

    Raises:
        ValueError: Another stride, an alpha that leaves no high channel, or a low
            map where ``alpha_in`` has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: int = 1,
        dilation: Size2d = 1,
        alpha_in: float = 0.5,
        alpha_out: float = 0.5,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f'OctaveConv2d: stride must be 1 or 2, got {stride}')
        self.stride = stride
        self.in_low, self.out_low = low_channels(in_channels, alpha_in), low_channels(out_channels, alpha_out)
        in_high, out_high = in_channels - self.in_low, out_channels - self.out_low

        size, step, same, spread = conv_window(kernel_size, 1, 'same', dilation)
        padding, self.pads = numeric_padding(same, size, step, spread)
        window = (size, step, padding, spread)

        def conv(inputs: int, outputs: int) -> nn.Conv2d | None:
            if not inputs or not outputs:
                return None
            return nn.Conv2d(inputs, outputs, *window, bias=False, device=device, dtype=dtype)

        self.hh = nn.Conv2d(in_high, out_high, *window, bias=False, device=device, dtype=dtype)
        self.hl = conv(in_high, self.out_low)
        self.lh, self.ll = conv(self.in_low, out_high), conv(self.in_low, self.out_low)

    def forward(self, x: Octave) -> Octave:
        high, low = x
        if self.stride == 2:
            high = halve(high)
        out_high = self.hh(self._padded(high))
        out_low = None if self.hl is None else self.hl(self._padded(halve(high)))
        if low is None:
            return out_high, out_low
        if self.lh is None:
            raise ValueError('OctaveConv2d got a low map, but has no low input channels (alpha_in)')
        from_low = self.lh(self._padded(low))
        if self.stride == 1:
            from_low = F.interpolate(from_low, size=out_high.shape[2:])
        if out_low is not None and self.ll is not None:
            out_low = out_low + self.ll(self._padded(low if self.stride == 1 else halve(low)))
        return out_high + from_low, out_low

    def _padded(self, x: Tensor) -> Tensor:
        return x if self.pads is None else F.pad(x, self.pads)


class OctConv(Conv2dLike):
    """:class:`OctaveConv2d` behind ``nn.Conv2d``'s interface: one resolution outside, two inside.

    The input is first average-pooled to the output's size, for any stride or
    padding, and convolved there with "same" padding: the paper pools instead of
    striding; doing so for other paddings too is our choice. The last alpha*C1
    channels are halved, convolved as low frequencies, and brought back in size.

    As many parameters as ``nn.Conv2d``; at alpha = 1/2 and stride 1, 7/16 of its
    work. A network that stays in two resolutions saves more:
    :class:`mmscconv.models.OctResNet`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.
        alpha: Share of the low channels in [0, 1), on both sides.

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2 channels.

    Raises:
        ValueError: An alpha that leaves no high channel.
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
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.alpha = alpha
        self.pool = AlignedAvgPool2d(*self.window)
        self.octave = OctaveConv2d(
            in_channels,
            out_channels,
            self.kernel_size,
            dilation=self.dilation,
            alpha_in=alpha,
            alpha_out=alpha,
            device=device,
            dtype=dtype,
        )

    def transform(self, x: Tensor) -> Tensor:
        high, low = self.pool(x).tensor_split((self.in_channels - self.octave.in_low,), dim=1)
        high, low = self.octave((high, halve(low) if self.octave.in_low else None))
        return high if low is None else torch.cat((high, F.interpolate(low, size=high.shape[2:])), dim=1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}'
