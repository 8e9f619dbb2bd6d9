"""ResNet for ImageNet and for detectors, with any registered conv layer as its conv2 (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS

from mmscconv.models.conv2_swap import Conv2Replaced
from mmscconv.models.deploy import switch_to_deploy


@MODELS.register_module()
class ConvResNet(Conv2Replaced, ResNet):
    """mmdet's ResNet-18/34/50/101/152 whose conv2 is the layer of ``conv_cfg``.

    Bottleneck: the 3x3. BasicBlock: the second 3x3 only, as the paper's counts
    for ResNet-56 prove. The norm behind it stays, unless the layer declares
    ``ends_normalized``. Works as backbone in mmdet and mmpretrain, with the same
    state-dict keys in both.

    Args:
        depth: 18, 34, 50, 101 or 152.
        conv_cfg: ``type`` and settings of the layer for conv2, such as
            ``dict(type='SPConv', alpha=0.75)``; None for the plain network.
            mmdet's own ``conv_cfg`` would change every convolution.
        stage_with_conv: Per stage, whether its blocks get the layer.
        **kwargs: mmdet's ``ResNet`` arguments. Mind ``norm_eval=True``, mmdet's
            default: it freezes the statistics of BN, right only for a backbone
            whose pretrained weights include the layer's.

    Shape:
        Input (N, 3, H, W); output: a tuple of (N, C_i, H_i, W_i) for
        ``out_indices``, with ResNet's channels and sizes.

    Raises:
        ValueError: ``stage_with_conv`` with fewer entries than stages, DCN in a
            stage with the layer (both want the same convolution), or settings that
            the layer refuses.
    """

    # The argument's name in messages; SCConvResNet has its own.
    stage_option = 'stage_with_conv'

    def __init__(
        self,
        depth: int,
        conv_cfg: dict[str, Any] | None = None,
        stage_with_conv: Sequence[bool] = (True, True, True, True),
        num_stages: int = 4,
        **kwargs: Any,
    ) -> None:
        self.replace_in_stages(conv_cfg, stage_with_conv, num_stages)
        super().__init__(depth, num_stages=num_stages, **kwargs)

    def replace_in_stages(self, conv2_cfg: dict[str, Any] | None, stages: Sequence[bool], num_stages: int) -> None:
        """Set the replacement and its stages, which mmdet's ``__init__`` needs when it builds the stages."""
        if len(stages) < num_stages:
            raise ValueError(
                f'{self.stage_option} needs one entry for each of the {num_stages} stages, got {tuple(stages)}'
            )
        self.conv2_cfg = dict(conv2_cfg) if conv2_cfg else None
        self.stage_with_conv = tuple(stages)

    def conv2_cfg_of_stage(self, **kwargs: Any) -> dict[str, Any] | None:
        """See :class:`Conv2Replaced`; ValueError for DCN and the layer in one stage."""
        stage = len(self.res_layers)
        conv2_cfg = self.conv2_cfg if self.stage_with_conv[stage] else None
        if conv2_cfg is not None and kwargs.get('dcn') is not None:
            raise ValueError(
                f'stage {stage}: DCN and {conv2_cfg["type"]} replace the same convolution; '
                f'set stage_with_dcn or {self.stage_option} to False there'
            )
        return conv2_cfg

    def switch_to_deploy(self) -> None:
        """See :func:`mmscconv.models.deploy.switch_to_deploy`; this is the name that mmpretrain's tools call."""
        switch_to_deploy(self)
