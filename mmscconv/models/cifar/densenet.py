"""DenseNet-121 for 32 x 32 images (Table 2)."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from mmpretrain.models.backbones.densenet import DenseNet
from torch import nn

from mmscconv.models.conv2_swap import build_replacement


@MODELS.register_module()
class CIFARDenseNet(DenseNet):
    """mmpretrain's DenseNet with a bare 3x3 convolution of stride 1 as its stem.

    The paper's 7.05 M / 898.23 M is k = 32 with 64 stem channels and neither norm
    nor pooling behind the stem.

    Args:
        arch: As mmpretrain's: ``'121'``, ..., or a dict.
        conv_cfg: ``type`` and settings of the layer for the 3x3 of each dense
            layer (128 to 32 channels, stride 1); None for the plain network.
        in_channels: Channels of the images.
        **kwargs: mmpretrain's other ``DenseNet`` arguments.

    Shape:
        (N, 3, 32, 32) to a tuple with (N, 1024, 4, 4) for DenseNet-121.

    Raises:
        ValueError: Settings that the layer refuses.
    """

    def __init__(
        self,
        arch: str | dict[str, Any] = '121',
        conv_cfg: dict[str, Any] | None = None,
        in_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, in_channels, **kwargs)
        self.stem = nn.Conv2d(in_channels, self.init_channels, 3, padding=1, bias=False)
        if conv_cfg is not None:
            for layer in (layer for stage in self.stages for layer in stage.block):
                layer.conv2 = build_replacement(conv_cfg, layer.conv2)
        self._freeze_stages()  # the parent froze the replaced layers
