"""mmengine's initializers meet SCConv: those meant for one convolution are not applied to its inner ones."""

import copy
import math
from statistics import mean

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.model.weight_init import (
    Caffe2XavierInit,
    ConstantInit,
    KaimingInit,
    NormalInit,
    TruncNormalInit,
    UniformInit,
    XavierInit,
)
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import mmscconv.models  # noqa: F401, registers the layers
from helpers.conv_layers import LAYERS, layers
from mmscconv import LegacySCConv, SCConv, replace_conv
from mmscconv.layers.rivals import OctConv, TiedConv

ABSOLUTE = {
    'Normal': lambda **k: NormalInit(std=0.01, **k),
    'TruncNormal': lambda **k: TruncNormalInit(std=0.01, a=-0.02, b=0.02, **k),
    'Uniform': lambda **k: UniformInit(-0.01, 0.01, **k),
    'Constant': lambda **k: ConstantInit(0.02, **k),
}
FANS = {'Kaiming': KaimingInit, 'Xavier': XavierInit, 'Caffe2Xavier': Caffe2XavierInit}
PRIOR = -math.log(99)  # the bias of a class with probability 0.01
products = pytest.mark.parametrize(
    ('kind', 'settings'), [(SCConv, {}), (SCConv, {'inner_norm': True, 'alpha': 0.75}), (LegacySCConv, {})], ids=str
)


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize('target', ['Conv2d', '_ConvNd', ['Conv2d', 'Linear']], ids=str)
@pytest.mark.parametrize('initializer', ABSOLUTE.values(), ids=ABSOLUTE)
@products
def test_a_fixed_scale_is_for_the_layer_and_not_for_what_is_inside(kind, settings, initializer, target):
    model = nn.Sequential(nn.Sequential(kind(32, 32, 3, bias=True, **settings)), nn.Conv2d(32, 8, 1))
    before = values(model)
    initializer(layer=target, bias=0.7)(model)
    assert changed(model, before) == {'0.0.bias', '1.weight', '1.bias'}
    assert (model[0][0].bias == 0.7).all() and (model[1].bias == 0.7).all()
    assert model[1].weight.abs().max() < 0.1


@products
def test_without_a_bias_nothing_changes(kind, settings):
    layer = kind(32, 32, 3, **settings)
    before = values(layer)
    NormalInit(std=0.01, layer='Conv2d')(layer)
    assert not changed(layer, before)


@products
def test_initializers_of_norms_reach_those_inside(kind, settings):
    layer = kind(32, 32, 3, bias=True, **settings)
    before = values(layer)
    ConstantInit(3, bias=2, layer=['_BatchNorm', 'GroupNorm', 'Conv2d', '_NormBase'])(layer)
    norms = {name for name, m in layer.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))}
    assert changed(layer, before) == {f'{name}.{p}' for name in norms for p in ('weight', 'bias')} | {'bias'}
    assert (layer.sru.gn.weight == 3).all() and (layer.sru.gn.bias == 2).all() and (layer.bias == 2).all()


@products
def test_initializers_of_other_layers_change_nothing(kind, settings):
    layer = kind(32, 32, 3, bias=True, **settings)
    before = values(layer)
    NormalInit(std=0.01, bias=1, layer='Linear')(layer)
    assert not changed(layer, before)


@pytest.mark.parametrize('initializer', FANS.values(), ids=FANS)
@layers
def test_a_scale_by_the_fan_goes_through_as_ever(layer, settings, initializer):
    module = layer(32, 32, 3, bias=True, **settings)
    plain = copy.deepcopy(module)
    plain.__class__ = type('Plain', (type(module),), {'apply': nn.Module.apply})
    for each in (module, plain):
        torch.manual_seed(1)
        initializer(layer='Conv2d')(nn.Sequential(each))
    for name, want in plain.named_parameters():
        assert torch.equal(module.get_parameter(name), want), name


@layers
def test_other_functions_see_all_modules_in_torch_s_order(layer, settings):
    module, seen, want = layer(32, 32, 3, **settings), [], []
    assert module.apply(seen.append) is module
    nn.Module.apply(module, want.append)
    assert list(map(id, seen)) == list(map(id, want))
    assert seen[-1] is module


def test_subclasses_of_initializers_are_known():
    class Mine(NormalInit):
        pass

    layer = SCConv(32, 32, 3)
    before = values(layer)
    Mine(std=0.01, layer='Conv2d')(layer)
    assert not changed(layer, before)


def test_one_convolution_behind_the_sru_takes_the_scale():
    layer = SCConv(64, 64, 3, arrangement='S')
    NormalInit(std=0.01, layer='Conv2d')(layer)
    assert 0.009 < layer.conv.weight.std() < 0.011


class Head(BaseModule):
    def __init__(self, layer, override):
        init_cfg = dict(type='Normal', layer='Conv2d', std=0.01, override=dict(name='pred', bias_prob=0.01, **override))
        super().__init__(init_cfg)
        self.pred = layer


OVERRIDES = {
    'Normal': dict(type='Normal', std=0.01),
    'Constant': dict(type='Constant', val=0),
    'Kaiming': dict(type='Kaiming'),
    'Xavier': dict(type='Xavier'),
}


@pytest.mark.parametrize('override', OVERRIDES.values(), ids=OVERRIDES)
@pytest.mark.parametrize('name', [name for name in LAYERS if not name.startswith(('Tied', 'Oct'))])
def test_an_override_sets_the_layer_s_bias_alone(name, override):
    kind, settings = LAYERS[name]
    layer = kind(32, 32, 3, bias=True, **settings)
    inner = {key: value for key, value in values(layer).items() if key != 'bias'}
    Head(layer, override).init_weights()
    torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, PRIOR))
    touched = {key for key, value in inner.items() if not torch.equal(layer.get_parameter(key), value)}
    # The head's own Normal, which comes first, goes through to rivals, whose norms take its scale away.
    if layer.multiplies:
        assert not touched
    else:
        assert all(isinstance(layer.get_submodule(key.rpartition('.')[0]), nn.Conv2d) for key in touched)


@pytest.mark.parametrize('layer', [TiedConv, OctConv], ids=lambda layer: layer.__name__)
def test_an_override_reaches_layers_that_are_as_one_convolution(layer):
    head = Head(layer(64, 64, 3, bias=True), OVERRIDES['Normal'])
    head.init_weights()
    torch.testing.assert_close(head.pred.bias, torch.full_like(head.pred.bias, PRIOR))
    for name, parameter in head.pred.named_parameters():
        if name.endswith('weight'):
            assert 0.009 < parameter.std() < 0.011, name


def retina_head(road):
    init_default_scope('mmdet')
    config = dict(type='RetinaHead', num_classes=80, in_channels=256, stacked_convs=4, feat_channels=256)
    head = MODELS.build({**config, 'conv_cfg': dict(type='SCConv')} if road == 'conv_cfg' else config)
    if road == 'ReplaceConv':
        replace_conv(head, dict(type='SCConv'), match='*_convs.*')
    if road == 'ReplaceConv with the predictions':
        replace_conv(head, dict(type='SCConv'))
    head.init_weights()
    return head


def depths(head):
    """Standard deviations behind the convolutions and the first one's gradient."""
    x, found = torch.randn(1, 256, 17, 20, generator=torch.Generator().manual_seed(0)), []
    for layer in head.cls_convs:
        x = layer(x)
        found.append(x.std().item())
    head.retina_cls(x).sigmoid().sum().backward()
    gradients = [p.grad.norm() ** 2 for p in head.cls_convs[0].parameters() if p.grad is not None]
    return [*found, sum(gradients).sqrt().item()]


@pytest.mark.parametrize('road', ['conv_cfg', 'ReplaceConv', 'ReplaceConv with the predictions'])
def test_signal_and_gradient_of_a_head_stay_in_the_plain_one_s_range(road):
    plain, head = retina_head('plain'), retina_head(road)
    # Applied to the inner convolutions, Normal(std=0.01) leaves 4e-5 and less of them.
    for want, got in zip(depths(plain), depths(head), strict=True):
        assert want / 50 < got < want * 50
    for name in ('retina_cls', 'retina_reg'):
        bias, want = getattr(head, name).bias, getattr(plain, name).bias
        torch.testing.assert_close(bias, want)


def head_loss(road, digits, root, iterations=35):
    """Train a small RetinaNet; return the mean classification loss of the last iterations."""
    init_default_scope('mmdet')
    config = Config.fromfile(root / 'configs' / 'retinanet_r18_digits.py')
    config.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.neck': dict(
                in_channels=[8, 16, 32, 64],
                out_channels=32,
                start_level=1,
                end_level=1,
                num_outs=1,
                add_extra_convs=False,
            ),
            # No norms between the convolutions, which would hide their scale.
            'model.bbox_head': dict(in_channels=32, feat_channels=32, stacked_convs=4, norm_cfg=None),
            'model.bbox_head.anchor_generator.strides': [8],
            'train_dataloader': dict(batch_size=4, num_workers=0, persistent_workers=False),
            'train_dataloader.dataset.data_root': str(digits),
            'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        }
    )
    model = config.model.to_dict()
    if road == 'conv_cfg':
        model['bbox_head']['conv_cfg'] = dict(type='SCConv')
    if road == 'ReplaceConv':
        model = dict(type='ReplaceConv', model=model, conv_cfg=dict(type='SCConv'), match='bbox_head.*_convs.*')
    torch.manual_seed(0)
    model = MODELS.build(model)
    model.init_weights()
    model.train()
    batches = [
        model.data_preprocessor(batch, True) for batch in Runner.build_dataloader(config.train_dataloader, seed=0)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for i in range(iterations):
        batch = batches[i % len(batches)]
        found = model.loss(batch['inputs'], batch['data_samples'])
        optimizer.zero_grad()
        sum(map(sum, found.values())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        losses.append(sum(found['loss_cls']).item())
    return losses[0], mean(losses[-6:])


@pytest.mark.slow
def test_a_retinanet_with_an_scconv_head_trains_like_the_plain_one(digits, root):
    start, plain = head_loss('plain', digits, root)
    assert plain < 0.65 * start
    for road in ('conv_cfg', 'ReplaceConv'):
        first, last = head_loss(road, digits, root)
        assert first == pytest.approx(start, rel=0.02)
        assert last < 1.15 * plain, road
