"""SCConv: SRU and CRU in the place of a convolution (CVPR 2023, sections 2 and 3.2).

Not to be confused with the self-calibrated convolution of SCNet (CVPR 2020),
which goes by the same short name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Size2d, check_input, pair
from mmscconv.layers.cru import CRU
from mmscconv.layers.sru import SRU

ARRANGEMENTS = ('S+C', 'C+S', 'C&S', 'S', 'C')


class SCConv(nn.Module):
    """A replacement for a dense ``nn.Conv2d``, with its argument order and attributes.

    ===========  =======================================================
    arrangement  output (Table 1)
    ===========  =======================================================
    ``'S+C'``    CRU(SRU(X)), the paper's SCConv
    ``'C+S'``    SRU(CRU(X))
    ``'C&S'``    CRU(X) + pool(SRU(X)); needs in_channels = out_channels
    ``'S'``      conv(SRU(X)), with a plain k x k convolution
    ``'C'``      CRU(X)
    ===========  =======================================================

    ``pool`` brings SRU's output to the convolution's size (the identity at
    stride 1): the paper does not say how the parallel form is strided.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As
            ``nn.Conv2d``'s.
        groups: Must be 1, SCConv is dense; the paper's g is ``gwc_groups``.
        bias: Add one bias per output channel behind everything else.
        alpha, squeeze_ratio, gwc_groups, low_squeeze, inner_norm: Of
            :class:`CRU`, where ``gwc_groups`` is called ``groups``.
        num_groups, threshold, gate: Of :class:`SRU`.
        arrangement: One of the table's first column.

    Shape:
        Input (N, in_channels, H, W) or (in_channels, H, W); output as
        ``nn.Conv2d``'s, in the dtype that the convolutions give.

    Raises:
        ValueError: ``groups`` other than 1, an unknown ``arrangement``, ``'C&S'``
            between different channel counts, and whatever SRU and CRU refuse.
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
        *,
        alpha: float = 0.5,
        squeeze_ratio: int = 2,
        gwc_groups: int = 2,
        low_squeeze: str = 'input',
        inner_norm: bool = False,
        num_groups: int = 16,
        threshold: float = 0.5,
        gate: str = 'soft',
        arrangement: str = 'S+C',
    ) -> None:
        super().__init__()
        if groups != 1:
            raise ValueError(f"SCConv is dense: groups must be 1, got {groups}; the paper's g is gwc_groups")
        if arrangement not in ARRANGEMENTS:
            raise ValueError(f'arrangement must be one of {ARRANGEMENTS}, got arrangement={arrangement!r}')
        if arrangement == 'C&S' and in_channels != out_channels:
            raise ValueError(
                "arrangement='C&S' adds SRU's output to CRU's and needs in_channels = out_channels, "
                f"got {in_channels} and {out_channels}; 'S+C' and 'C+S' do not"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair('kernel_size', kernel_size, 1)
        self.stride = pair('stride', stride, 1)
        self.dilation = pair('dilation', dilation, 1)
        self.padding = padding if isinstance(padding, str) else pair('padding', padding, 0)
        self.groups = 1
        self.arrangement = arrangement
        window = (self.kernel_size, self.stride, self.padding, self.dilation)

        self.sru = self.cru = self.conv = self.pool = None
        if arrangement != 'C':
            self.sru = SRU(out_channels if arrangement == 'C+S' else in_channels, num_groups, threshold, gate)
        if arrangement == 'S':
            self.conv = nn.Conv2d(in_channels, out_channels, *window, bias=False)
        else:
            self.cru = CRU(
                in_channels, out_channels, *window, alpha, squeeze_ratio, gwc_groups, low_squeeze, inner_norm
            )
        if arrangement == 'C&S':
            self.pool = AlignedAvgPool2d(*window)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        check_input('SCConv', x, self.in_channels)
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        if self.arrangement == 'S+C':
            y = self.cru(self.sru(x))
        elif self.arrangement == 'C+S':
            y = self.sru(self.cru(x))
        elif self.arrangement == 'C&S':
            y = self.cru(x) + self.pool(self.sru(x))
        elif self.arrangement == 'S':
            y = self.conv(self.sru(x))
        else:
            y = self.cru(x)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding!r}, dilation={self.dilation}, bias={self.bias is not None}, '
            f'arrangement={self.arrangement!r}'
        )
