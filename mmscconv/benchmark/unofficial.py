"""A re-composition of the popular unofficial ScConv module, as a rival in benchmarks.

Written for this benchmark from a description of that module; no code is copied.
Differences from :class:`mmscconv.SCConv`: GN is composed of PyTorch operations,
the GWC is biased, one softmax over the 2C channels of both branches weighs their
sum, and the module has no stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscconv.layers import SCConv


# LegacySCConv is not used: it gives the same numbers by other operations than the module that people run.
class UnofficialSRU(nn.Module):
    """SRU over a GN that is composed of mean, std and element-wise operations.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, num_groups: int = 16, threshold: float = 0.5, eps: float = 1e-10) -> None:
        super().__init__()
        self.num_groups, self.threshold, self.eps = num_groups, threshold, eps
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), self.num_groups, -1)
        centred = groups - groups.mean(dim=2, keepdim=True)
        normalized = (centred / (groups.std(dim=2, keepdim=True) + self.eps)).reshape(x.shape)
        gate = torch.sigmoid((normalized * self.weight + self.bias) * (self.weight / self.weight.sum()))
        informative = gate > self.threshold
        x1 = torch.where(informative, torch.ones_like(gate), gate) * x
        x2 = torch.where(informative, torch.zeros_like(gate), gate) * x
        x11, x12 = x1.chunk(2, dim=1)
        x21, x22 = x2.chunk(2, dim=1)
        return torch.cat((x11 + x22, x12 + x21), dim=1)


class UnofficialCRU(nn.Module):
    """CRU with a biased GWC and one softmax over the 2C channels of both branches.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, kernel_size: int = 3, squeeze_ratio: int = 2, groups: int = 2) -> None:
        super().__init__()
        half = channels // 2
        squeezed = half // squeeze_ratio
        self.squeeze1 = nn.Conv2d(half, squeezed, 1, bias=False)
        self.squeeze2 = nn.Conv2d(half, squeezed, 1, bias=False)
        self.gwc = nn.Conv2d(squeezed, channels, kernel_size, padding=kernel_size // 2, groups=groups)
        self.pwc1 = nn.Conv2d(squeezed, channels, 1, bias=False)
        self.pwc2 = nn.Conv2d(squeezed, channels - squeezed, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        up, low = x.chunk(2, dim=1)
        up, low = self.squeeze1(up), self.squeeze2(low)
        both = torch.cat((self.gwc(up) + self.pwc1(up), self.pwc2(low), low), dim=1)
        both = torch.softmax(self.pool(both), dim=1) * both
        y1, y2 = both.chunk(2, dim=1)
        return y1 + y2


def unofficial_like(layer: SCConv) -> nn.Module:
    """Return the unofficial module as a replacement of ``layer``.

    For stride 2, average pooling goes in front: the way with the least work, and so
    the most favourable one to the module.

    Raises:
        ValueError: Input and output channels differ, or the stride is neither 1 nor 2.
    """
    channels, stride = layer.in_channels, layer.stride
    if layer.out_channels != channels or stride not in ((1, 1), (2, 2)):
        raise ValueError(f'the unofficial module cannot replace SCConv({layer.extra_repr()})')
    parts = [UnofficialSRU(channels), UnofficialCRU(channels, layer.kernel_size[0])]
    # ceil_mode gives the size that the strided convolution gives.
    return nn.Sequential(*([nn.AvgPool2d(2, ceil_mode=True)] if stride == (2, 2) else []), *parts)
