"""Whole models in deploy form: norms folded into the convolutions and SCConvs in front of them."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import mmdet.models.backbones.resnet as mmdet_resnet
import mmpretrain.models.backbones.resnet as mmpretrain_resnet
import torch.nn.functional as F  # noqa: N812, the field's name for it
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmscconv.layers import SCConv
from mmscconv.layers.deploy import DeployedCRU
from mmscconv.layers.folding import fold_norm
from mmscconv.models.openmmlab import PlainBottleneck


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Bring ``model`` into its form for inference, in place, and return it.

    Every SCConv folds its inner norms. In ResNets of mmdet and mmpretrain, those of
    this package among them, in ``ConvModule`` and in ``nn.Sequential``, each BN is folded into the
    convolution or SCConv in front of it, and in their Bottlenecks the ReLU behind an SCConv, too
    (:class:`DeployedBottleneck`). Everything else stays as it is. The
    result equals the model in eval mode up to rounding; it cannot be trained or
    turned back, and takes a training checkpoint only before.
    """
    model.eval()
    for module in list(model.modules()):
        for conv, norm in _pairs(module):
            _fold(module, conv, norm)
    for parent in list(model.modules()):
        for name, block in list(parent.named_children()):
            if DeployedBottleneck.takes(block):
                setattr(parent, name, DeployedBottleneck(cast('PlainBottleneck', block)))
    for module in list(model.modules()):
        if isinstance(module, SCConv):
            module.switch_to_deploy()
    return model


class DeployedBottleneck(nn.Module):
    """A Bottleneck of mmdet or mmpretrain whose SCConv does the ReLU behind it; the state-dict keys stay.

    Args:
        block: One that :meth:`takes` accepts, its norms folded.
    """

    def __init__(self, block: PlainBottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.downsample = block.conv1, block.conv2, block.conv3, block.downsample
        cru = getattr(block.conv2, 'cru', None)
        assert isinstance(cru, DeployedCRU)  # as takes() found it
        cru.relu = True
        self.out_channels = block.conv3.out_channels  # mmpretrain reads it

    @staticmethod
    def takes(block: nn.Module) -> bool:
        """Whether ``block`` does what this one does, besides the ReLU."""
        known = (mmdet_resnet.Bottleneck.forward, mmpretrain_resnet.Bottleneck.forward)
        if type(block).forward not in known or getattr(block, 'with_plugins', False):
            return False
        convs = [block.conv1, block.conv2, block.conv3]
        if not isinstance(convs[1], SCConv) or not isinstance(convs[1].cru, DeployedCRU) or not convs[1].ends_in_cru:
            return False
        return all(isinstance(getattr(block, f'norm{i}'), nn.Identity) for i in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(self.conv2(F.relu(self.conv1(x), inplace=True)))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of children of which the second, a norm, takes the first's output and nothing else does."""
    if isinstance(module, nn.Sequential):
        return list(pairwise(module._modules))
    if isinstance(module, ConvModule) and module.order[:2] == ('conv', 'norm') and module.with_norm:
        return [('conv', module.norm_name)]
    # OpenMMLab's ResNets and their blocks: norm1 may be called bn1 or gn1, and norm1_name says so.
    numbered = ((f'conv{i}', getattr(module, f'norm{i}_name', None)) for i in (1, 2, 3))
    return [(conv, norm) for conv, norm in numbered if norm is not None]


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = parent._modules.get(conv_name), parent._modules.get(norm_name)
    if not isinstance(norm, _BatchNorm) or norm.running_var is None:
        return
    if isinstance(conv, SCConv) and conv.ends_in_cru:
        conv.switch_to_deploy(norm)
    elif isinstance(conv, nn.Conv2d):
        parent._modules[conv_name] = fold_norm(conv, norm)
    else:
        return
    parent._modules[norm_name] = nn.Identity()
