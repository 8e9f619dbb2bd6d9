"""Wide ResNet for 32 x 32 images, "Wide Residual Networks" (BMVC 2016), as Table 2 counts it."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmscconv.layers.norms_first import NormsFirst
from mmscconv.models.conv2_swap import build_replacement


class WideBlock(nn.Module):
    """BN, ReLU, 3x3, dropout, BN, ReLU, 3x3, plus the input.

    The stride is in conv2 and the convolutions are biased, shortcut included, as
    the paper's 36.55 M / 5.96 G requires.

    Args:
        in_channels, out_channels: Channels of the block's input and output.
        stride: Stride of conv2 and of the 1x1 shortcut, which exists if the shape changes.
        dropout: Probability between the convolutions.
        conv_cfg: ``type`` and settings of the layer for conv2.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dropout: float, conv_cfg: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.BatchNorm2d(out_channels)
        conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1)
        # Without the bias, unless conv_cfg sets it: these layers are unbiased in all other networks.
        self.conv2 = conv2 if conv_cfg is None else build_replacement({'bias': False, **conv_cfg}, conv2)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.norm1(x)))
        y = self.conv2(self.relu(self.norm2(self.dropout(y))))
        return y + self.shortcut(x)


@MODELS.register_module()
class CIFARWideResNet(NormsFirst, BaseModule):
    """WRN-d-k: three stages of (d - 4) / 6 pre-activated blocks with 16 k, 32 k and 64 k channels.

    Args:
        depth: 6 n + 4, at least 10.
        widen_factor: k.
        dropout: Probability inside of the blocks.
        conv_cfg: ``type`` and settings of the layer for conv2 of each block; None
            for the plain network.
        init_cfg: mmengine's.

    Shape:
        (N, 3, 32, 32) to a tuple with (N, 64 k, 8, 8).

    Raises:
        ValueError: Another depth, or settings that the layer refuses.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        conv_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg or [dict(type='Kaiming', layer='Conv2d')])
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f'CIFARWideResNet: depth must be 6 n + 4 with n >= 1 (16, 28, 40), got {depth}')
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stages = nn.ModuleList()
        in_channels = 16
        for stage in range(3):
            channels = 16 * widen_factor * 2**stage
            layers = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(WideBlock(in_channels, channels, stride, dropout, conv_cfg))
                in_channels = channels
            self.stages.append(nn.Sequential(*layers))
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return (self.relu(self.norm(x)),)
