"""Whole models in deploy form: norms folded into the convolutions and SCConvs in front of them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import cast

import mmdet.models.backbones.resnet as mmdet_resnet
import mmpretrain.models.backbones.resnet as mmpretrain_resnet
import torch.nn.functional as F  # noqa: N812, the field's name for it
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmengine.model.utils import _BatchNormXd  # SyncBN after revert_sync_batchnorm
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import Tensor, nn

from mmscconv.errors import warn
from mmscconv.layers import CRU, SCConv
from mmscconv.layers.deploy import DeployedCRU
from mmscconv.layers.folding import fold_norm, is_affine
from mmscconv.layers.hooked import has_own_forward, is_hooked
from mmscconv.layers.intact import change_of, disturbance, methods_of, other_method
from mmscconv.models.stubs import PlainBottleneck
from mmscconv.replace.select import shared_parameters

# Exact types, as SCConv below: a subclass, such as mmcv's ConvWS2d, may compute something else with the same weight.
CONVS = (nn.Conv2d, WrappedConv2d)
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm, _BatchNormXd)
METHODS = {cls: methods_of(cls) for cls in (*CONVS, SCConv)}
NOTHING_IN_EVAL = (type(None), nn.Identity, DropPath)
# Packages in whose blocks norm1 takes the output of conv1 alone, and so on.
HOMES = ('mmdet', 'mmpretrain', 'mmscconv')
INNER_NORMS = ('norm_up', 'norm_low', 'norm1', 'norm2')


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Bring ``model`` into its form for inference, in place, and return it.

    Every SCConv folds its inner norms. In ResNets of mmdet and mmpretrain, those of
    this package among them, in ``ConvModule`` and in ``nn.Sequential``, each BN is folded into the
    convolution or SCConv in front of it, and in their Bottlenecks the ReLU behind an SCConv, too
    (:class:`DeployedBottleneck`). Everything else stays unchanged. The result
    equals the model in eval mode up to rounding. One way: load training checkpoints
    first; the result cannot be trained.

    A norm stays where folding could change numbers or bypass an observer: subclasses
    of convolutions and norms, hooks, parametrizations, pruning, a ``forward`` set on an
    instance (as mmengine's ``efficient_conv_bn_eval`` does), blocks of OpenMMLab with a
    ``forward`` of the user, norms that norm by the batch in eval mode, too, and
    convolutions or weights that stand in several places. For the same reasons an SCConv
    stays as it is, with a warning that names it.
    """
    model.eval()
    fixed = _Fixed(model)
    for module in list(model.modules()):
        for conv, norm in _pairs(module):
            if not fixed.holds(module, conv, norm):
                _fold(module, conv, norm)
    for parent in list(model.modules()):
        for name, block in list(parent.named_children()):
            if DeployedBottleneck.takes(block):
                setattr(parent, name, DeployedBottleneck(cast('PlainBottleneck', block)))
    for module in list(model.modules()):
        if isinstance(module, SCConv) and id(module) not in fixed.layers:
            module.switch_to_deploy()
    return model


class DeployedBottleneck(nn.Module):
    """A Bottleneck of mmdet or mmpretrain whose SCConv includes the ReLU behind it; the state-dict keys stay.

    Args:
        block: One that :meth:`takes` accepts, its norms folded.
    """

    def __init__(self, block: PlainBottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.downsample = block.conv1, block.conv2, block.conv3, block.downsample
        cast('SCConv', block.conv2).append_relu()
        self.out_channels = block.conv3.out_channels  # mmpretrain reads it

    @staticmethod
    def takes(block: nn.Module) -> bool:
        """Return whether this class can take over the work of ``block``."""
        known = (mmdet_resnet.Bottleneck.forward, mmpretrain_resnet.Bottleneck.forward)
        if type(block).forward not in known or getattr(block, 'with_plugins', False):
            return False
        if type(block.relu) is not nn.ReLU or type(getattr(block, 'drop_path', None)) not in NOTHING_IN_EVAL:
            return False
        conv = block.conv2
        if type(conv) is not SCConv or not isinstance(conv.cru, DeployedCRU) or not conv.ends_in_cru:
            return False
        # Only conv1, conv3 and downsample are called as before: no other child may have hooks.
        called = {id(child) for child in (block.conv1, block.conv3, block.downsample)}
        if is_hooked(block) or any(is_hooked(child) for child in block.children() if id(child) not in called):
            return False
        return all(isinstance(getattr(block, f'norm{i}'), nn.Identity) for i in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(self.conv2(F.relu(self.conv1(x), inplace=True)))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class _Fixed:
    """The convolutions and norms of a model that cannot be folded."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.shared = shared_parameters(model)
        self.places = Counter(id(child) for module in modules for child in module._modules.values())
        # A forward set on an instance may be a traced graph, which calls the modules that it found then.
        self.traced = {id(inside) for module in modules if has_own_forward(module) for inside in module.modules()}
        self.layers = set()
        for name, module in model.named_modules():
            reason = _obstacle(module.cru) if isinstance(module, SCConv) and isinstance(module.cru, CRU) else None
            if reason is not None:
                warn(f'{name} stays out of the deploy form: {reason}')
                self.layers.add(id(module))

    def holds(self, parent: nn.Module, conv_name: str, norm_name: str) -> bool:
        """Return whether these two children of ``parent`` have to stay unchanged."""
        conv, norm = parent._modules.get(conv_name), parent._modules.get(norm_name)
        if conv is None or norm is None or id(parent) in self.traced or is_hooked(conv) or is_hooked(norm):
            return True
        if type(conv) in METHODS and other_method(conv, METHODS[type(conv)]):
            return True
        if type(conv) is SCConv and (id(conv) in self.layers or not _takes_norm(conv)):
            return True
        return self.places[id(conv)] > 1 or any(id(p) in self.shared for p in conv.parameters())


def _obstacle(cru: CRU) -> str | None:
    """Return why ``cru`` has no deploy form with the numbers of its present mode, or None."""
    reason = change_of(cru)
    if reason is not None:
        return reason
    for name in INNER_NORMS:
        norm = getattr(cru, name)
        if not is_affine(norm):
            why = 'it is in training mode' if norm.training else 'it norms by the batch in eval mode, too'
            return f'{name}: {why}'
    return None


def _takes_norm(conv: SCConv) -> bool:
    """Return whether the norm behind an SCConv can be folded into it."""
    cru = conv.cru
    if isinstance(cru, DeployedCRU):
        return not cru.relu and disturbance(cru) is None
    return isinstance(cru, CRU)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of children's names: the second, a norm, is the only one to take the first's output."""
    forward = type(module).forward
    if isinstance(module, nn.Sequential):
        return list(pairwise(module._modules)) if forward is nn.Sequential.forward else []
    if isinstance(module, ConvModule):
        # With mmcv's efficient_conv_bn_eval the norm is read while the convolution runs.
        efficient = getattr(module, 'efficient_conv_bn_eval_forward', None) is not None
        if forward is not ConvModule.forward or efficient or module.order[:2] != ('conv', 'norm'):
            return []
        return [('conv', module.norm_name)] if module.with_norm else []
    if str(getattr(forward, '__module__', None)).partition('.')[0] not in HOMES:
        return []
    # OpenMMLab's ResNets and their blocks: norm1 may be called bn1 or gn1, and norm1_name says so.
    numbered = ((f'conv{i}', getattr(module, f'norm{i}_name', None)) for i in (1, 2, 3))
    return [(conv, norm) for conv, norm in numbered if norm is not None]


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = parent._modules.get(conv_name), parent._modules.get(norm_name)
    if type(norm) not in NORMS or not is_affine(norm):
        return
    if type(conv) is SCConv and conv.ends_in_cru:
        conv.switch_to_deploy(norm)
    elif type(conv) in CONVS and isinstance(conv, nn.Conv2d) and conv._parameters.get('weight') is not None:
        if conv.training:  # of a parent that keeps it there; torch folds in eval mode alone
            return
        parent._modules[conv_name] = fold_norm(conv, norm)
    else:
        return
    parent._modules[norm_name] = nn.Identity()
