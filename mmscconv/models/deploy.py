"""Whole models in deploy form: norms folded into the convolutions and SCConvs in front of them."""

from __future__ import annotations

from itertools import pairwise

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmscconv.layers import SCConv
from mmscconv.layers.deploy import fold_norm


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Bring ``model`` into its form for inference, in place, and return it.

    Every SCConv folds its inner norms. In ResNets of mmdet and mmpretrain, those of
    this package among them, in ``ConvModule`` and in ``nn.Sequential``, each BN is folded into the
    convolution or SCConv in front of it. Everything else stays as it is. The
    result equals the model in eval mode up to rounding; it cannot be trained or
    turned back, and takes a training checkpoint only before.
    """
    model.eval()
    for module in list(model.modules()):
        for conv, norm in _pairs(module):
            _fold(module, conv, norm)
    for module in list(model.modules()):
        if isinstance(module, SCConv):
            module.switch_to_deploy()
    return model


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
