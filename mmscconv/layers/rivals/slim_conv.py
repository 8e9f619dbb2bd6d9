"""SlimConv, "SlimConv: Reducing Channel Redundancy in Convolutional Neural Networks by Weights Flipping" (TIP 2021).

k = 4/3 follows the paper: the layer gives 3/4 of the requested channels to the
1x1 behind it. How k = 1 keeps all channels is inferred from the counts that the
SCConv paper prints: the second 3x3 widens C/4 to C/2, and the attention's
squeeze is C/16 instead of C/32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.layers.arguments import Device, Size2d
from mmscconv.layers.conv_like import Conv2dLike, check_dense


class SlimConv(Conv2dLike):
    """Fold the channels in half under attention weights and under the flipped ones, then convolve both.

    ::

        w     = attention(X)                                 # (N, C1, 1, 1), in (0, 1)
        upper = conv_upper(fold(w * X))                      # C1/2 -> C2/2, k x k
        lower = conv_lower(relu(squeeze(fold(flip(w) * X)))) # C1/2 -> C1/4, 1x1; then k x k
        Y     = cat(upper, lower)

    ``fold`` adds the second half of the channels to the first; each convolution
    is followed by BN.

    Args:
        in_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.
        out_channels: C2 of the replaced convolution. The attribute of that name is
            the layer's own number, C2/k.
        k: 1 or 4/3, the factor by which the output is slimmer than C2.

    Attributes:
        ends_normalized: Whether to remove the norm behind the replaced convolution
            (at k = 4/3, where the printed counts have none).

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2/k channels.

    Raises:
        ValueError: Another ``k``, or channels that are not multiples of 4.
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
        k: float = 1,
    ) -> None:
        check_dense('SlimConv', in_channels, out_channels, groups)
        slim = abs(k - 4 / 3) < 1e-3
        if k != 1 and not slim:
            raise ValueError(f'SlimConv: k must be 1 or 4/3, got k={k}')
        if in_channels % 4 or out_channels % 4:
            raise ValueError(
                'SlimConv: in_channels and out_channels must be multiples of 4, '
                f'got in_channels={in_channels}, out_channels={out_channels}'
            )
        upper, lower = out_channels // 2, out_channels // (4 if slim else 2)
        super().__init__(
            in_channels,
            upper + lower,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.k = k
        self.ends_normalized = slim
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        squeezed, half, quarter = max(in_channels // (32 if slim else 16), 1), in_channels // 2, in_channels // 4
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, squeezed, 1, bias=False, **factory),
            nn.BatchNorm2d(squeezed, **factory),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, in_channels, 1, **factory),
            nn.Sigmoid(),
        )
        self.upper = nn.Sequential(
            nn.Conv2d(half, upper, *self.inner_window, bias=False, **factory), nn.BatchNorm2d(upper, **factory)
        )
        self.lower = nn.Sequential(
            nn.Conv2d(half, quarter, 1, bias=False, **factory),
            nn.BatchNorm2d(quarter, **factory),
            nn.ReLU(inplace=True),
            nn.Conv2d(quarter, lower, *self.inner_window, bias=False, **factory),
            nn.BatchNorm2d(lower, **factory),
        )

    def transform(self, x: Tensor) -> Tensor:
        weight = self.attention(x)
        folded, flipped = (sum((w * x).chunk(2, dim=1)) for w in (weight, weight.flip(1)))
        return torch.cat((self.upper(folded), self.lower(flipped)), dim=1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, k={self.k:.4g}'
