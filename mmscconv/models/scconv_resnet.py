"""ResNet with SCConv instead of the convolutions that the paper replaces (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS

from mmscconv.models.conv_layers import SCCONV_TYPE
from mmscconv.models.conv_resnet import ConvResNet


@MODELS.register_module()
class SCConvResNet(ConvResNet):
    """mmdet's ResNet-18/34/50/101/152 whose conv2 is an SCConv.

    Bottleneck: the 3x3. BasicBlock: the second 3x3 only, as the paper's counts
    for ResNet-56 prove. The norm behind it stays. Works as backbone in mmdet and
    mmpretrain, with the same state-dict keys in both.

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
        ValueError: ``stage_with_scconv`` with fewer entries than stages, DCN
            in a stage with SCConv (both want the same convolution), or settings
            that SCConv refuses.
    """

    stage_option = 'stage_with_scconv'

    def __init__(
        self,
        depth: int,
        scconv: dict[str, Any] | None = None,
        stage_with_scconv: Sequence[bool] = (True, True, True, True),
        num_stages: int = 4,
        **kwargs: Any,
    ) -> None:
        self.scconv = dict(scconv or {})
        self.replace_in_stages({'type': SCCONV_TYPE, **self.scconv}, stage_with_scconv, num_stages)
        # Not ConvResNet's __init__: a conv_cfg among kwargs is mmdet's, with another meaning.
        ResNet.__init__(self, depth, num_stages=num_stages, **kwargs)
