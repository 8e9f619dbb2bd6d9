"""mmcv's folding and mmengine's initializers, on layers in the place of convolutions."""

import copy
import logging

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model import initialize
from mmengine.registry import MODELS
from torch import nn

import mmscconv.models
from like_a_convolution.columns import (
    RIVALS,
    Column,
    assert_same,
    build,
    every,
    inputs,
    made,
    plain,
)
from mmscconv import SCConv, replace_conv
from mmscconv.layers.rivals import TiedConv

NAMES = ['Conv2d', 'SRU', 'CRU', 'S+C', 'C+S', 'C&S', 'S', 'C', 'Legacy', *RIVALS, 'inner_norm', 'alpha 0', 'alpha 1',
         'bias', 'output squeeze', 'stride 2']  # fmt: skip


@pytest.fixture
def silent():
    """No log of mmengine's for every weight that it initializes."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def network(layer, first=True):
    """Layers and norms in the order in which a walk over children meets them, with statistics that are not trivial."""
    torch.default_generator.manual_seed(5)
    modules = [layer, nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*([] if first else [nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)]), *modules)
    for m in net:
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.uniform_(m.bias, -1, 1)
    return net.eval()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('fold', ['fuse_conv_bn', 'switch_to_deploy'])
def test_folding(name, first, fold):
    """Folding leaves the numbers as they are."""
    net = network(made(name), first)
    want = plain(net)(inputs().double())
    folded = copy.deepcopy(net)
    if 'switch' in fold:
        folded = mmscconv.models.switch_to_deploy(folded)
    if 'fuse' in fold:
        folded = fuse_conv_bn(folded)
    assert_same({'y': folded(inputs())}, {'y': want}, rtol=1e-3)


@pytest.mark.parametrize('name', ['SCConv', 'SPConv', 'TiedConv', 'GhostConv', 'SlimConv', 'OctConv'])
@pytest.mark.parametrize('fold', [fuse_conv_bn, mmscconv.models.switch_to_deploy])
def test_folding_a_conv_module(name, fold):
    module = ConvModule(16, 16, 3, padding=1, conv_cfg=dict(type=name), norm_cfg=dict(type='BN')).eval()
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 2)
    want = plain(module)(inputs().double())
    folded = fold(copy.deepcopy(module))
    assert_same({'y': folded(inputs())}, {'y': want}, rtol=1e-3)


def chain(kind, channels=64, depth=4):
    return nn.Sequential(*(kind(channels, channels, 3, padding=1) for _ in range(depth)))


INITS = {
    'Normal': dict(type='Normal', layer='Conv2d', std=0.05),
    'TruncNormal': dict(type='TruncNormal', layer='Conv2d', std=0.05),
    'Uniform': dict(type='Uniform', layer='Conv2d', a=-0.08, b=0.08),
    'Kaiming': dict(type='Kaiming', layer='Conv2d'),
    'Xavier': dict(type='Xavier', layer='Conv2d', distribution='uniform'),
    'Caffe2Xavier': dict(type='Caffe2Xavier', layer='Conv2d'),
    'PretrainedInit of nothing': dict(type='Normal', layer='Linear', std=0.01),
    'override': dict(type='Kaiming', layer='Linear', override=dict(type='Normal', name='0', std=0.05)),
    'list': [dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])],
}


def gains(net, x):
    """Standard deviation behind each layer, and the gradient's norm at the input."""
    x = x.clone().requires_grad_()
    stds, y = [], x
    for layer in net:
        y = layer(y)
        stds.append(y.std().item())
    (g,) = torch.autograd.grad(y.square().mean(), x)
    return stds, g.norm().item()


@pytest.mark.parametrize('kind', [SCConv, *RIVALS.values()], ids=lambda k: k.__name__)
@pytest.mark.parametrize('init', INITS)
def test_initializers(kind, init, silent):
    """Behind four layers the signal is not weaker than by convolutions, or than by the layer's own initialization."""
    x = torch.randn(2, 64, 8, 8)
    net, dense = chain(kind), chain(nn.Conv2d)
    for n in (net, dense):
        torch.default_generator.manual_seed(6)
        initialize(n, copy.deepcopy(INITS[init]))
    (got, slope), (want, dense_slope) = gains(net.train(), x), gains(dense.train(), x)
    own, own_slope = gains(chain(kind).train(), x)
    assert got[-1] > min(own[-1], want[-1]) / 10, f'stds {got}, of convolutions {want}, without initialization {own}'
    assert got[-1] < 30 * max(own[-1], want[-1])
    assert slope > min(own_slope, dense_slope) / 100


def test_normal_of_a_whole_module():
    """``override`` initializes all inside of a child, norms' weights too: the layer still passes its input on."""
    torch.default_generator.manual_seed(0)
    outputs = {}
    for kind in (nn.Conv2d, SCConv):
        net = nn.ModuleDict(dict(head=chain(kind)))
        initialize(net, dict(type='Kaiming', layer='Linear', override=dict(type='Normal', name='head', std=0.05)))
        outputs[kind] = gains(net['head'], torch.randn(2, 64, 8, 8))[0][-1]
    own = gains(chain(SCConv), torch.randn(2, 64, 8, 8))[0][-1]
    assert outputs[SCConv] > min(own, outputs[nn.Conv2d]) / 10


def test_zero_init_can_be_left_again():
    """A convolution of zeros can train: one of SCConv's weights has to get a gradient, too."""
    net = chain(SCConv, depth=1)
    initialize(net, dict(type='Constant', layer='Conv2d', val=0.0))
    net(torch.randn(2, 64, 8, 8)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_bias_prob_of_a_head():
    """The bias that focal loss needs reaches the output."""
    for conv_cfg in (None, dict(type='SCConv', bias=True)):
        conv = MODELS.build(
            dict(**(conv_cfg or dict(type='Conv2d')), in_channels=64, out_channels=64, kernel_size=3, padding=1)
        )
        net = nn.Sequential(conv)
        initialize(
            net,
            dict(
                type='Normal',
                layer='Conv2d',
                std=0.01,
                override=dict(type='Normal', name='0', std=0.01, bias_prob=0.01),
            ),
        )
        assert abs(net(torch.randn(4, 64, 8, 8)).sigmoid().mean().item() - 0.01) < 0.02, conv_cfg


@pytest.mark.parametrize('way', ['conv_cfg', 'replace_conv'])
def test_retina_head(way, silent):
    """The tutorial's head: the signal and the gradient behind four layers are of a plain head's order of magnitude."""
    mmdet_registry = pytest.importorskip('mmdet.registry')
    from mmdet.utils import register_all_modules

    register_all_modules()
    found = []
    for scconv in (False, True):
        torch.default_generator.manual_seed(0)
        cfg = dict(type='RetinaHead', num_classes=4, in_channels=256, stacked_convs=4, feat_channels=256)
        if scconv and way == 'conv_cfg':
            cfg['conv_cfg'] = dict(type='SCConv')
        head = mmdet_registry.MODELS.build(cfg)
        if scconv and way == 'replace_conv':
            replace_conv(head, dict(type='SCConv'), match='*_convs.*')
        head.init_weights()
        y = torch.randn(1, 256, 8, 8)
        for conv in head.cls_convs:
            y = conv(y)
        head.retina_cls(y).sigmoid().sum().backward()
        first = head.cls_convs[0].conv
        grad = sum(p.grad.square().sum().item() for p in first.parameters() if p.grad is not None) ** 0.5
        found.append((y.std().item(), grad))
    (plain_std, plain_grad), (std, grad) = found
    assert std > plain_std / 30, f'std behind four layers {std:.1e}, plain {plain_std:.1e}'
    assert grad > plain_grad / 100, f'gradient of the first layer {grad:.1e}, plain {plain_grad:.1e}'


def test_sync_and_revert():
    """mmengine's conversions of norms walk into the layers."""
    from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm

    for column in every(('inner_norm', 'SPConv', 'GhostConv', 'SlimConv'), training=False, road='default'):
        layer, truth, x = build(column)
        back = revert_sync_batchnorm(convert_sync_batchnorm(layer)).eval()
        assert_same({'y': back(x)}, {'y': truth(x.double())})


def test_columns_are_built_as_configs_build_them():
    assert isinstance(MODELS.build(dict(type='TiedConv', in_channels=16, out_channels=16, kernel_size=3)), TiedConv)
    assert isinstance(build(Column('S+C')).layer, SCConv)
