"""Octave ResNet: OctConv in all of a ResNet's bottlenecks, two resolutions between them.

The rows OctConv-R50 of Tables 2 and 3 keep the baseline's parameters and lose 40 %
of its work, which replacing the 3x3 alone cannot give: every convolution of the
blocks is an octave one. As in the paper of OctConv, the first block makes the low
maps and the last stage is single-resolution again.
"""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS
from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR
from torch import Tensor, nn

from mmscconv.layers.rivals.oct_conv import OctaveConv2d
from mmscconv.models.stubs import AnyResNet, PlainBottleneck


class OctaveUnit(nn.Module):
    """Octave convolution, a norm per resolution and, if asked, ReLU; pairs (high, low or None) in and out."""

    def __init__(
        self, conv: nn.Conv2d, norm_cfg: dict[str, Any], alpha_in: float, alpha_out: float, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = OctaveConv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride[0], conv.dilation, alpha_in, alpha_out
        )
        low = self.conv.out_low
        self.norm_high = build_norm_layer(norm_cfg, conv.out_channels - low)[1]
        self.norm_low = build_norm_layer(norm_cfg, low)[1] if low else None
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        high, low = self.conv(x)
        high = self.relu(self.norm_high(high))
        return high, None if low is None or self.norm_low is None else self.relu(self.norm_low(low))


class OctBottleneck(nn.Module):
    """The octave form of a plain bottleneck ``block``, with the channels and strides of its convolutions.

    Args:
        block: mmdet's or mmpretrain's ``Bottleneck``.
        norm_cfg: Config of the norms.
        alpha_in, alpha_out: Share of low channels in the input, and in all other maps.

    Shape:
        A pair (high, low or None) to a pair; low has half of high's resolution.
    """

    def __init__(self, block: PlainBottleneck, norm_cfg: dict[str, Any], alpha_in: float, alpha_out: float) -> None:
        super().__init__()
        self.conv1 = OctaveUnit(block.conv1, norm_cfg, alpha_in, alpha_out)
        self.conv2 = OctaveUnit(block.conv2, norm_cfg, alpha_out, alpha_out)
        self.conv3 = OctaveUnit(block.conv3, norm_cfg, alpha_out, alpha_out, relu=False)
        self.downsample = None
        if block.downsample is not None:
            self.downsample = OctaveUnit(block.downsample[0], norm_cfg, alpha_in, alpha_out, relu=False)
        self.out_channels = block.conv3.out_channels  # mmpretrain reads it
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        shortcut = x if self.downsample is None else self.downsample(x)
        high, low = self.conv3(self.conv2(self.conv1(x)))
        return self.relu(high + shortcut[0]), None if low is None else self.relu(low + shortcut[1])


class OctStage(nn.Sequential):
    """Blocks in a row; takes a single map or a pair, and returns a single map if there is no low one."""

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        high, low = super().forward(x if isinstance(x, tuple) else (x, None))
        return high if low is None else (high, low)


class OctaveStages(AnyResNet):
    """A mixin for ResNets of mmdet and mmpretrain: makes each stage octave.

    Args:
        depth: 50, 101 or 152.
        alpha: Share of the low channels.
        num_stages, out_indices: Only the last stage can be an output.
        **kwargs: Of the ResNet; ``zero_init_residual`` has no effect.

    Raises:
        ValueError: Another depth, an output of an earlier stage, or settings of the ResNet's blocks that octave ones
            do not have.
    """

    def __init__(
        self,
        depth: int = 50,
        alpha: float = 0.5,
        num_stages: int = 4,
        out_indices: tuple[int, ...] = (3,),
        **kwargs: Any,
    ) -> None:
        if depth < 50:
            raise ValueError(f'{type(self).__name__} needs bottlenecks: depth 50, 101 or 152, got {depth}')
        if tuple(out_indices) != (num_stages - 1,):
            raise ValueError(
                f'{type(self).__name__}: only stage {num_stages - 1} is single-resolution; out_indices must be '
                f'({num_stages - 1},), got {tuple(out_indices)}'
            )
        for name in ('dcn', 'plugins', 'with_cp', 'drop_path_rate'):
            if kwargs.get(name):
                raise ValueError(f'{type(self).__name__}: octave blocks have no {name}, got {kwargs[name]}')
        self.alpha = alpha
        super().__init__(depth, num_stages=num_stages, out_indices=out_indices, **kwargs)

    def make_res_layer(self, **kwargs: Any) -> OctStage:
        """Build one stage."""
        plain = super().make_res_layer(**kwargs)
        stage = len(self.res_layers)
        alpha = 0 if stage == self.num_stages - 1 else self.alpha
        before = self.alpha if stage else 0
        return OctStage(
            *(OctBottleneck(block, self.norm_cfg, alpha if i else before, alpha) for i, block in enumerate(plain))
        )


@MODELS.register_module()
class OctResNet(OctaveStages, ResNet):
    """mmdet's ResNet in octaves, for ImageNet; set ``norm_eval=False`` for training.

    Shape:
        (N, 3, H, W) to a tuple with (N, 2048, H / 32, W / 32).
    """


@MODELS.register_module()
class CIFAROctResNet(OctaveStages, ResNet_CIFAR):
    """mmpretrain's ``ResNet_CIFAR`` in octaves.

    Shape:
        (N, 3, 32, 32) to a tuple with (N, 2048, 4, 4).
    """
