"""mmcv's fuse_conv_bn and mmengine's efficient_conv_bn_eval fold norms into convolutions: the numbers stay."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import MODELS
from torch import nn

import mmscconv.models
from helpers.conv_layers import LAYERS
from helpers.running_tools import DIGITS, run_tool
from helpers.trained import relative, trained
from mmscconv.models import switch_to_deploy
from mmscconv.models.conv2_swap import replace_conv2

SLIM = 'SlimConv-4/3'  # gives fewer channels than asked for
SETTINGS = {
    **LAYERS,
    'SCConv-norms-eq6': (mmscconv.SCConv, {'inner_norm': True}),
    'SCConv-all-low': (mmscconv.SCConv, {'inner_norm': True, 'alpha': 0.25, 'squeeze_ratio': 1}),
    'SCConv-bias': (mmscconv.SCConv, {'inner_norm': True, 'bias': True}),
}


def alone(layer, settings):
    return layer(64, 64, 3, padding=1, **settings)


def with_norm(layer, settings):
    conv = alone(layer, settings)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


def in_conv_module(layer, settings):
    conv_cfg = dict(type=layer.__name__, **{name: value for name, value in settings.items() if name != 'bias'})
    return ConvModule(
        64, 64, 3, padding=1, bias=settings.get('bias', 'auto'), conv_cfg=conv_cfg, norm_cfg=dict(type='BN')
    )


def in_bottleneck(layer, settings):
    block = Bottleneck(64, 64, downsample=nn.Sequential(nn.Conv2d(64, 256, 1), nn.BatchNorm2d(256)))
    replace_conv2(block, dict(type=layer.__name__, **settings))
    return block


PLACES = [alone, with_norm, in_conv_module, in_bottleneck]
kinds = pytest.mark.parametrize(('layer', 'settings'), SETTINGS.values(), ids=SETTINGS)


def model_of(place, layer, settings):
    return nn.Sequential(trained(place(layer, settings)))


def norms(model):
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ('place', 'layer', 'settings'),
    [
        pytest.param(place, layer, settings, id=f'{place.__name__}-{name}')
        for place in PLACES
        for name, (layer, settings) in SETTINGS.items()
        # A ConvModule makes a norm for the 64 channels asked for, of which a SlimConv gives fewer.
        if place is not in_conv_module or name != SLIM
    ],
)
@pytest.mark.parametrize('fold', [fuse_conv_bn, switch_to_deploy], ids=['mmcv', 'ours'])
def test_folding_keeps_the_numbers(layer, settings, place, fold):
    model = model_of(place, layer, settings)
    x = torch.randn(2, 64, 7, 8)
    with torch.no_grad():
        want = model(x)
        assert relative(fold(copy.deepcopy(model))(x), want) < 2e-6


def test_mmcv_folds_what_it_may():
    model = model_of(in_bottleneck, *LAYERS['SPConv'])
    before = norms(model)
    fuse_conv_bn(model)
    assert before == 6 and norms(model) == 3  # of conv1, conv3 and downsample; not norm2, nor SPConv's two


@pytest.mark.parametrize(('layer', 'settings'), [LAYERS['SPConv'], LAYERS['SCConv-norms']], ids=['SPConv', 'SCConv'])
def test_optimizers_and_checkpoints_see_the_old_order(layer, settings):
    module = alone(layer, settings)
    module = getattr(module, 'cru', module)
    registered = [name for name, child in module._modules.items() if child is not None and list(child.parameters())]
    assert list(dict.fromkeys(name.split('.')[0] for name, _ in module.named_parameters())) == registered
    assert list(dict.fromkeys(key.split('.')[0] for key in module.state_dict())) == registered
    assert {name for name, _ in module.named_children()} >= set(registered)


@pytest.mark.parametrize(
    'config',
    [
        dict(type='SCConvResNet', depth=50, base_channels=16, scconv=dict(inner_norm=True)),
        dict(type='ConvResNet', depth=18, base_channels=16, conv_cfg=dict(type='SPConv')),
        dict(type='ConvResNet', depth=50, base_channels=16, conv_cfg=dict(type='TiedConv')),
        dict(type='CIFARResNet', depth=20, conv_cfg=dict(type='GhostConv')),
        dict(type='CIFARBottleneckResNet', depth=50, conv_cfg=dict(type='SCConv')),
        dict(type='CIFARResNeXt', conv_cfg=dict(type='SCConv')),
        dict(type='CIFARDenseNet', conv_cfg=dict(type='SCConv')),
        dict(type='CIFARWideResNet', depth=16, widen_factor=1),
        dict(type='CIFARWideResNet', depth=16, widen_factor=1, conv_cfg=dict(type='SPConv')),
        dict(type='CIFAROctResNet', stem_channels=16, base_channels=16),
    ],
    ids=lambda config: '-'.join([config['type'], config.get('conv_cfg', {}).get('type', '')]),
)
@pytest.mark.parametrize('fold', [fuse_conv_bn, switch_to_deploy], ids=['mmcv', 'ours'])
def test_backbones(config, fold):
    model = trained(MODELS.build(config))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x)[-1]
        assert relative(fold(model)(x)[-1], want) < 1e-5


@kinds
@pytest.mark.parametrize('place', [with_norm, in_bottleneck], ids=lambda place: place.__name__)
def test_efficient_conv_bn_eval(layer, settings, place):
    model = model_of(place, layer, settings)
    x = torch.randn(2, 64, 7, 8)
    with torch.no_grad():
        want = model(x)
        turn_on_efficient_conv_bn_eval(model, ['0'])
        assert relative(model(x), want) < 2e-6
    assert 'forward' in model[0].__dict__


@pytest.mark.parametrize(
    'conv_cfg', [dict(type='SCConv'), dict(type='TiedConv'), dict(type='SPConv')], ids=lambda c: c['type']
)
def test_efficient_conv_bn_eval_of_a_backbone(conv_cfg):
    model = nn.ModuleDict(
        {'backbone': trained(MODELS.build(dict(type='ConvResNet', depth=18, base_channels=16, conv_cfg=conv_cfg)))}
    )
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model.backbone(x)
        turn_on_efficient_conv_bn_eval(model, ['backbone'])
        assert max(map(relative, model.backbone(x), want)) < 1e-5


def test_training_tool_with_efficient_conv_bn_eval(digits, root, tmp_path):
    config = root / 'configs' / 'retinanet_scconv_r18_digits.py'
    options = [*DIGITS, 'efficient_conv_bn_eval=[backbone]']
    run_tool('train.py', config, '--data-root', digits, '--work-dir', tmp_path, options=options)
    assert (tmp_path / 'epoch_1.pth').exists()
