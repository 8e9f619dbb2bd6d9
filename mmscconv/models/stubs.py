"""Type annotations for the parts of OpenMMLab's ResNets that this package uses; OpenMMLab has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from mmdet.models.backbones import ResNet as AnyResNet
else:
    # The base of mixins for ResNets of mmdet and mmpretrain, whose methods they call by super().
    AnyResNet = object


class Block(Protocol):
    """A BasicBlock or Bottleneck."""

    conv2: Any  # an nn.Conv2d, then the layer in its place
    conv3: Any  # an nn.Conv2d; a BasicBlock has none
    norm2_name: str


class PlainBottleneck(Protocol):
    """A newly built Bottleneck."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    downsample: Any  # None, or nn.Sequential with a 1x1 and a norm
