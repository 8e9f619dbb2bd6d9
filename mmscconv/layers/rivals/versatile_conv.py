"""VersatileConv, the spatial versatile filters of "Learning Versatile Filters for Efficient CNNs" (NeurIPS 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv.layers.arguments import Device, Size2d, padding_amounts
from mmscconv.layers.conv_like import Conv2dLike


class VersatileConv(Conv2dLike):
    """Each primary filter also gives secondary filters, its own inner parts, at no weights.

    ::

        f_i = the (k - 2i) x (k - 2i) weights around the centre of f, i = 0 ... s - 1, s = ceil(k / 2)
        Y = cat(f_0 * X, ..., f_{s-1} * X)          # the first C2 of them

    All windows have one centre. Of a 3x3, half of the output channels come from 3x3 filters and half from the same
    filters' centres: half of the parameters, 5/9 of the multiply-adds. A kernel of two sizes has as many secondary
    filters as its smaller size; that is our choice, and so is rounding up the number of primary filters. Their
    filters that are versatile along the channels are not built: no setting of them is known for Table 3. Tools that
    count the work of modules, not of operators, miss the secondary filters.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2 channels.

    Raises:
        ValueError: An even kernel size, which has no centre.
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
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                f'VersatileConv: kernel_size must be odd, so that filters have a centre, got {kernel_size}'
            )
        self.secondary = (min(self.kernel_size) + 1) // 2
        primary = -(-out_channels // self.secondary)
        self.primary = nn.Conv2d(in_channels, primary, *self.inner_window, bias=False, device=device, dtype=dtype)

    def transform(self, x: Tensor) -> Tensor:
        (top, _), (left, _) = padding_amounts(self.padding, self.kernel_size, self.stride, self.dilation)
        parts = [self.primary(x)]
        for i in range(1, self.secondary):
            # The window begins i taps further inside, where padding may be left or pixels are passed over.
            inside = top - i * self.dilation[0], left - i * self.dilation[1]
            padding, (rows, columns) = [max(n, 0) for n in inside], (max(-n, 0) for n in inside)
            seen = x[..., rows : x.shape[-2] - rows, columns : x.shape[-1] - columns]
            weight = self.primary.weight[..., i : self.kernel_size[0] - i, i : self.kernel_size[1] - i]
            parts.append(F.conv2d(seen, weight, None, self.stride, padding, self.dilation))
        return torch.cat(parts, dim=1)[:, : self.out_channels]
