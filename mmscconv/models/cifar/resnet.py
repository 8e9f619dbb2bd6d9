"""ResNets for 32 x 32 images: the thin three-stage ones and the bottleneck ones (Tables 1 and 2)."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR

from mmscconv.models.conv2_swap import Conv2Replaced


@MODELS.register_module()
class CIFARBottleneckResNet(Conv2Replaced, ResNet_CIFAR):
    """ResNet-50/101/152 with a 3x3 stem of stride 1 and no max-pooling.

    Args:
        depth: 50, 101 or 152 (18 and 34, of basic blocks, work too).
        conv_cfg: ``type`` and settings of the layer for conv2 of each block; None
            for the plain network. mmpretrain's would change every convolution.
        **kwargs: Of mmpretrain's ``ResNet_CIFAR``.

    Shape:
        (N, 3, 32, 32) to a tuple with (N, 2048, 4, 4).

    Raises:
        ValueError: Settings that the layer refuses.
    """

    def __init__(self, depth: int = 50, conv_cfg: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.conv2_cfg = conv_cfg
        super().__init__(depth, **kwargs)


@MODELS.register_module()
class CIFARResNet(Conv2Replaced, ResNet_CIFAR):
    """ResNet-20/32/44/56/110: three stages of 16, 32 and 64 channels, (depth - 2) / 6 basic blocks each.

    The shortcuts of the strided blocks are 1x1 convolutions with BN, and the
    stride is in conv1: the paper's 126.84 M for ResNet-56 needs both.

    Args:
        depth: 6 n + 2, at least 8.
        conv_cfg: ``type`` and settings of the layer for conv2 of each block, the
            one that the paper replaces; None for the plain network.
        **kwargs: Of mmpretrain's ``ResNet_CIFAR``.

    Shape:
        (N, 3, 32, 32) to a tuple with (N, 64, 8, 8).

    Raises:
        ValueError: Another depth, or settings that the layer refuses.
    """

    def __init__(self, depth: int = 56, conv_cfg: dict[str, Any] | None = None, **kwargs: Any) -> None:
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f'CIFARResNet: depth must be 6 n + 2 with n >= 1 (20, 32, 44, 56, 110), got {depth}')
        self.arch_settings = {depth: (BasicBlock, (blocks,) * 3)}
        self.conv2_cfg = conv_cfg
        defaults = dict(stem_channels=16, base_channels=16, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
        super().__init__(depth, num_stages=3, **{**defaults, **kwargs})
