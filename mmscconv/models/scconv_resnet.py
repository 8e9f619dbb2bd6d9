"""ResNet with SCConv in the place of the convolutions that the paper replaces (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS
from torch import nn

from mmscconv.models.conv import SCCONV_TYPE


@MODELS.register_module()
class SCConvResNet(ResNet):
    """mmdet's ResNet-18/34/50/101/152 whose conv2 is an SCConv.

    Bottleneck: the 3x3. BasicBlock: the second 3x3 only, which is what the
    paper's counts for ResNet-56 prove. The norm behind it stays. Works as
    backbone in mmdet and mmpretrain, with the same state-dict keys in both.

    Args:
        depth: 18, 34, 50, 101 or 152.
        scconv: Settings for :class:`mmscconv.SCConv`, such as
            ``dict(alpha=0.75, low_squeeze='output', inner_norm=True)``.
        stage_with_scconv: Per stage, whether its blocks get SCConv.
        **kwargs: mmdet's ``ResNet`` arguments. Mind ``norm_eval=True``, mmdet's
            default: it freezes the statistics of BN, right only for a backbone
            whose pretrained weights include SCConv's.

    Shape:
        Input (N, 3, H, W); output: a tuple of (N, C_i, H_i, W_i) for
        ``out_indices``, with ResNet's channels and sizes.

    Raises:
        ValueError: ``stage_with_scconv`` of another length than the stages, DCN
            in a stage with SCConv (both want the same convolution), or settings
            that SCConv refuses.
    """

    def __init__(
        self,
        depth: int,
        scconv: dict[str, Any] | None = None,
        stage_with_scconv: Sequence[bool] = (True, True, True, True),
        num_stages: int = 4,
        **kwargs: Any,
    ) -> None:
        if len(stage_with_scconv) < num_stages:
            raise ValueError(
                f'stage_with_scconv needs one entry for each of the {num_stages} stages, got {stage_with_scconv}'
            )
        # mmdet's __init__ builds the stages, so both are needed before it.
        self.scconv = dict(scconv or {})
        self.stage_with_scconv = tuple(stage_with_scconv)
        super().__init__(depth, num_stages=num_stages, **kwargs)

    def make_res_layer(self, **kwargs: Any) -> nn.Sequential:
        """Build a stage of plain blocks, then put SCConv in the place of each conv2."""
        stage = len(self.res_layers)
        with_scconv = self.stage_with_scconv[stage]
        if with_scconv and kwargs.get('dcn') is not None:
            raise ValueError(
                f'stage {stage}: DCN and SCConv replace the same convolution; '
                'set stage_with_dcn or stage_with_scconv to False there'
            )
        layer = super().make_res_layer(**kwargs)
        if with_scconv:
            for block in layer:
                block.conv2 = self._scconv_like(block.conv2)
        return layer

    def _scconv_like(self, conv: nn.Conv2d) -> nn.Module:
        return build_conv_layer(
            {'type': SCCONV_TYPE, **self.scconv},
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            bias=conv.bias is not None,
        )
