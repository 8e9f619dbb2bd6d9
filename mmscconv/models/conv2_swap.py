"""Replacement of one convolution of a block by another layer."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_conv_layer
from torch import nn

from mmscconv.layers import SCConv
from mmscconv.models.stubs import AnyResNet, Block
from mmscconv.replace.like import arguments_like


def build_replacement(conv_cfg: dict[str, Any], conv: nn.Conv2d) -> nn.Module:
    """Build the layer of ``conv_cfg`` with the window and channels of ``conv``.

    The layer is dense even if ``conv`` is grouped: the paper's counts for ResNeXt-29 need
    it. ``conv_cfg`` may set ``bias``; otherwise ``conv`` decides.
    """
    arguments, window = arguments_like(conv)
    return build_conv_layer({'bias': conv.bias is not None, **conv_cfg}, *arguments, **window)


def replace_conv2(block: Block, conv_cfg: dict[str, Any]) -> None:
    """Replace ``block.conv2``, and adapt the block to a layer that gives fewer channels.

    A layer may declare with ``ends_normalized`` that the block's ``norm2`` has to
    be removed, and with its ``out_channels`` that the 1x1 behind it gets fewer
    channels than the replaced convolution gave (SlimConv, k = 4/3).

    Args:
        block: A BasicBlock or Bottleneck of mmdet's or mmpretrain's ResNet.
        conv_cfg: ``type`` and settings of a registered conv layer.

    Raises:
        ValueError: Fewer channels where a residual sum follows.
    """
    old = block.conv2
    block.conv2 = build_replacement(conv_cfg, old)
    if getattr(block.conv2, 'ends_normalized', False):
        setattr(block, block.norm2_name, nn.Identity())
    elif isinstance(block.conv2, SCConv):
        block.conv2.mark_output_kept()  # by norm2
    if block.conv2.out_channels == old.out_channels:
        return
    if not hasattr(block, 'conv3'):
        raise ValueError(
            f'{conv_cfg["type"]} gives {block.conv2.out_channels} channels where {type(block).__name__} adds '
            f'{old.out_channels} to its input; only a Bottleneck, with a 1x1 behind, can take fewer'
        )
    conv3 = block.conv3
    block.conv3 = nn.Conv2d(block.conv2.out_channels, conv3.out_channels, 1, bias=conv3.bias is not None)


class Conv2Replaced(AnyResNet):
    """A mixin for ResNets of mmdet and mmpretrain: builds plain stages, then replaces each conv2.

    ``conv2_cfg`` (None: stay plain) has to be set before ``super().__init__``,
    which builds the stages.
    """

    conv2_cfg: dict[str, Any] | None = None

    def make_res_layer(self, **kwargs: Any) -> nn.Sequential:
        """Build one stage."""
        conv2_cfg = self.conv2_cfg_of_stage(**kwargs)
        layer = super().make_res_layer(**kwargs)
        if conv2_cfg is not None:
            for block in layer:
                replace_conv2(block, conv2_cfg)
        return layer

    def conv2_cfg_of_stage(self, **kwargs: Any) -> dict[str, Any] | None:
        """Return the layer's config for the stage that is built next with these arguments; None for a plain stage."""
        return self.conv2_cfg
