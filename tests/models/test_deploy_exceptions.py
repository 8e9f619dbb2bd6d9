"""Norms that switch_to_deploy leaves where they are, since folding would change numbers or hide what is watched."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.models.backbones.resnet import BasicBlock
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations, prune

from helpers.conv_layers import layers
from helpers.doubled import Doubled, DoubledBatchNorm
from helpers.trained import relative
from mmscconv import SCConv
from mmscconv.models import deploy, switch_to_deploy

C = 32


class DoubledSCConv(SCConv):
    def forward(self, x):
        return 2 * super().forward(x)


class Backwards(nn.Sequential):
    def forward(self, x):
        for module in reversed(list(self)):
            x = module(x)
        return x


class PreActivation(BasicBlock):
    def forward(self, x):
        return x + self.conv2(self.relu(self.norm2(self.conv1(self.relu(self.norm1(x))))))


class BatchNormed(nn.Sequential):
    """Norms by the batch in eval mode, too."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        return self


class AlwaysTraining(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)


class NormsInEval(nn.Sequential):
    """Its convolutions stay in training mode, which changes none of their numbers."""

    def train(self, mode=True):
        super().train(True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def conv():
    return nn.Conv2d(C, C, 3, padding=1)


def pair(first=None, norm=None):
    return nn.Sequential(conv() if first is None else first, nn.BatchNorm2d(C) if norm is None else norm)


def watched(module, kind='forward_hook', result=None):
    getattr(module, f'register_{kind}')(lambda *_: result)
    return module


def replaced_method(module, name):
    method = getattr(module, name)
    setattr(module, name, lambda *args: 2 * method(*args))
    return module


def replaced_forward(module):
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    return module


def pruned():
    return prune.l1_unstructured(conv(), 'weight', 0.5)


def shared_weight():
    model = nn.Sequential(pair(), conv())
    model[1].weight = model[0][0].weight
    return model


def shared_module(make=conv):
    # As in mmdet's heads with norms per level.
    first = make()
    return nn.Sequential(pair(first), pair(first))


def traced():
    block = nn.Sequential(SCConv(C, C, 3, padding=1), nn.BatchNorm2d(C))
    model = nn.ModuleDict({'block': nn.Sequential(block)})
    turn_on_efficient_conv_bn_eval(model, ['block'])
    return model.block


def efficient_module():
    settings = dict(padding=1, norm_cfg=dict(type='BN'))
    module = ConvModule(C, C, 3, **settings)
    module.turn_on_efficient_conv_bn_eval()
    return module


def inside(change):
    layer = SCConv(C, C, 3, padding=1)
    change(layer)
    return pair(layer)


def wrap_cru(layer):
    layer.cru = nn.Sequential(layer.cru)


def adapt_to_the_batch(layer):
    """Norm by the batch at hand, as test-time adaptation (TENT) does."""
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


def normed():
    return SCConv(C, C, 3, padding=1, inner_norm=True)


def adapted():
    layer = normed()
    adapt_to_the_batch(layer)
    return pair(layer)


def deploy_with_relu(layer):
    layer.eval()
    layer.switch_to_deploy(relu=True)


def deploy_and_watch(layer):
    layer.eval()
    layer.switch_to_deploy()
    watched(layer.cru)


KEPT = {
    '_conv_forward': lambda: pair(replaced_method(conv(), '_conv_forward')),
    '_conv_forward of mmcv': lambda: pair(replaced_method(WrappedConv2d(C, C, 3, padding=1), '_conv_forward')),
    'transform of SCConv': lambda: pair(replaced_method(SCConv(C, C, 3, padding=1), 'transform')),
    'hooked CRU': lambda: inside(lambda layer: watched(layer.cru)),
    'hooked GWC': lambda: inside(lambda layer: watched(layer.cru.gwc)),
    'pruned GWC': lambda: inside(lambda layer: prune.l1_unstructured(layer.cru.gwc, 'weight', 0.5)),
    'wrapped CRU': lambda: inside(wrap_cru),
    'forward of the CRU': lambda: inside(lambda layer: replaced_forward(layer.cru) and None),
    'deployed with a ReLU': lambda: inside(deploy_with_relu),
    'hooked deploy form': lambda: inside(deploy_and_watch),
    'subclass': lambda: pair(Doubled(C, C, 3, padding=1)),
    'ConvWS': lambda: pair(MODELS.build(dict(type='ConvWS', in_channels=C, out_channels=C, kernel_size=3, padding=1))),
    'adaptive padding': lambda: pair(Conv2dAdaptivePadding(C, C, 3)),
    'DCN': lambda: pair(ModulatedDeformConv2dPack(C, C, 3, padding=1)),
    'transposed': lambda: pair(nn.ConvTranspose2d(C, C, 3, padding=1)),
    'subclass of BN': lambda: pair(norm=DoubledBatchNorm(C)),
    'GN': lambda: pair(norm=nn.GroupNorm(4, C)),
    'subclass of SCConv': lambda: pair(DoubledSCConv(C, C, 3, padding=1)),
    'BN without statistics': lambda: pair(norm=nn.BatchNorm2d(C, track_running_stats=False)),
    'hooked norm': lambda: pair(norm=watched(nn.BatchNorm2d(C))),
    'pruned': lambda: pair(pruned()),
    'weight norm': lambda: pair(parametrizations.weight_norm(conv())),
    'older spectral norm': lambda: pair(nn.utils.spectral_norm(conv())),
    'instance forward': lambda: pair(replaced_forward(conv())),
    'instance forward of SCConv': lambda: pair(replaced_forward(SCConv(C, C, 3, padding=1))),
    'shared weight': shared_weight,
    'shared module': shared_module,
    'shared SCConv': lambda: shared_module(lambda: SCConv(C, C, 3, padding=1)),
    'another order': lambda: Backwards(conv(), nn.BatchNorm2d(C)),
    'a block of the user': lambda: PreActivation(C, C),
    'inner norms without statistics': adapted,
    **{
        f'{kind.__name__} {first.__name__}': lambda kind=kind, first=first: kind(first(), nn.BatchNorm2d(C))
        for kind in (BatchNormed, AlwaysTraining, NormsInEval)
        for first in (conv, normed)
        if (kind, first) != (NormsInEval, normed)
    },
    'ConvModule with efficient_conv_bn_eval': efficient_module,
    'traced by mmengine': traced,
    **{
        f'{kind} of {first.__name__}': lambda kind=kind, first=first: pair(watched(first(C, C, 3, padding=1), kind))
        for kind in ('forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook')
        for first in (nn.Conv2d, SCConv)
    },
}
FOLDED = {
    'Conv2d': pair,
    'Conv2d of mmcv': lambda: pair(WrappedConv2d(C, C, 3, padding=1)),
    'reflect': lambda: pair(nn.Conv2d(C, C, 3, padding=1, padding_mode='reflect')),
    'grouped': lambda: pair(nn.Conv2d(C, C, 3, padding=1, groups=4)),
    'SyncBN': lambda: pair(norm=nn.SyncBatchNorm(C)),
    'SyncBN of mmengine': lambda: pair(norm=MODELS.get('SyncBN')(C)),
    'reverted SyncBN': lambda: revert_sync_batchnorm(pair(norm=nn.SyncBatchNorm(C))),
    'ConvModule': lambda: ConvModule(C, C, 3, padding=1, norm_cfg=dict(type='BN')),
    'SCConv': lambda: pair(SCConv(C, C, 3, padding=1)),
    'deployed SCConv': lambda: inside(lambda layer: layer.eval().switch_to_deploy()),
    'SCConv in training mode, norm in eval mode': lambda: NormsInEval(SCConv(C, C, 3, padding=1), nn.BatchNorm2d(C)),
}


def randomized(model):
    """Give norms the weights and statistics that training might."""
    for m in model.modules():
        if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            nn.init.uniform_(m.weight, 0.3, 2.0)
            nn.init.normal_(m.bias, 0, 0.3)
        if getattr(m, 'running_var', None) is not None:
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.3, 3)
    model.eval()  # mmdet's returns nothing
    return model


def norms(model):
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return sum(isinstance(m, kinds) for name, m in model.named_modules() if not name.endswith('sru.gn'))


def test_norms_behind_each_other_are_folded_together():
    layer, first, second = SCConv(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.BatchNorm2d(C)
    model, x = randomized(nn.Sequential(layer, first, second, nn.ReLU())), torch.randn(2, C, 7, 8)
    with torch.no_grad():
        want = model(x)
        layer.switch_to_deploy(first)
        layer.switch_to_deploy(second, relu=True)
        assert relative(layer(x), want) < 2e-6
    with pytest.raises(ValueError, match='ends in a ReLU: no norm behind it can be folded'):
        layer.switch_to_deploy(nn.BatchNorm2d(C))
    wrap_cru(layer)
    with pytest.raises(ValueError, match='a Sequential stands in the place of the CRU: no norm or ReLU'):
        layer.switch_to_deploy(relu=True)


def test_what_stays_as_it_is_is_named(monkeypatch):
    """And does not stop the rest of the model half-way."""
    warnings = []
    monkeypatch.setattr(deploy, 'warn', warnings.append)
    model = nn.Sequential(pair(), inside(lambda layer: prune.l1_unstructured(layer.cru.gwc, 'weight', 0.5)))
    model.append(pair(SCConv(C, C, 3, padding=1)))
    switch_to_deploy(randomized(model))
    assert norms(model) == 1
    assert warnings == ['1.0 stays out of the deploy form: gwc: it has hooks, or a forward of its own']
    assert type(model[2][0].cru).__name__ == 'DeployedCRU'


@pytest.mark.parametrize(
    ('make', 'reason'),
    [(adapted, 'it norms by the batch in eval mode, too'), (lambda: BatchNormed(normed()), 'it is in training mode')],
    ids=['without statistics', 'in training mode'],
)
def test_inner_norms_that_norm_by_the_batch_are_named(make, reason, monkeypatch):
    warnings = []
    monkeypatch.setattr(deploy, 'warn', warnings.append)
    switch_to_deploy(make())
    assert warnings == [f'0 stays out of the deploy form: norm_up: {reason}']


@pytest.mark.parametrize(
    ('make', 'folds'),
    [*((m, False) for m in KEPT.values()), *((m, True) for m in FOLDED.values())],
    ids=[*KEPT, *FOLDED],
)
def test_numbers_stay(make, folds):
    model, x = randomized(make()), torch.randn(2, C, 7, 8)
    count = norms(model)
    with torch.no_grad():
        want = model(x)
        switch_to_deploy(model)
        assert relative(model(x), want) < 2e-6
    assert norms(model) == (count - 1 if folds else count)


@layers
def test_rivals_keep_the_norm_behind(layer, settings):
    module = layer(C, C, 3, padding=1, **settings)
    model, x = randomized(pair(module, nn.BatchNorm2d(module.out_channels))), torch.randn(2, C, 7, 8)
    with torch.no_grad():
        want = model(x)
        assert relative(switch_to_deploy(model)(x), want) < 2e-6
    assert isinstance(model[1], nn.BatchNorm2d) == (not isinstance(module, SCConv) or not module.ends_in_cru)


def test_tied_conv_in_its_shipped_config(root):
    from mmengine.config import Config

    config = Config.fromfile(root / 'configs' / 'tiedconv_resnet50_imagenet.py').model.backbone
    model = randomized(MODELS.build({**config, 'base_channels': 16}))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x)[-1]
        assert relative(switch_to_deploy(model)(x)[-1], want) < 1e-5


def bottlenecks():
    return randomized(MODELS.build(dict(type='SCConvResNet', depth=50, base_channels=16, norm_eval=False))).layer2


@pytest.mark.parametrize('name', ['', 'relu', 'conv2', 'bn2'])
@pytest.mark.parametrize('kind', ['forward_hook', 'forward_pre_hook'])
def test_hooks_of_a_bottleneck_are_called_and_see_the_same(name, kind):
    stage, x, seen = bottlenecks(), torch.randn(1, 64, 8, 8), []

    def look(*arguments):
        seen.append(arguments[-1] if isinstance(arguments[-1], torch.Tensor) else arguments[-1][0])

    getattr(stage[1].get_submodule(name), f'register_{kind}')(look)
    with torch.no_grad():
        want = stage(x.clone())
        before = [t.clone() for t in seen]
        seen.clear()
        assert relative(switch_to_deploy(stage)(x.clone()), want) < 1e-5
    assert len(seen) == len(before) > 0
    assert type(stage[1]).__name__ == 'Bottleneck' and type(stage[2]).__name__ == 'DeployedBottleneck'
    for got, expected in zip(seen, before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['conv1', 'conv3'])
def test_hooks_of_other_convolutions_are_called(name):
    stage, x, seen = bottlenecks(), torch.randn(1, 64, 8, 8), []
    stage[1].get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        want = stage(x)
        assert relative(switch_to_deploy(stage)(x), want) < 1e-5
    assert seen == [1, 1]


def test_a_hook_added_to_a_deployed_bottleneck_is_called():
    stage, seen = switch_to_deploy(bottlenecks()), []
    for module in (stage[1], stage[1].conv1, stage[1].conv2, stage[1].conv3):
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with torch.no_grad():
        stage(torch.randn(1, 64, 8, 8))
    assert seen == ['Conv2d', 'SCConv', 'Conv2d', 'DeployedBottleneck']


def test_a_relu_is_appended_to_deployed_layers_alone():
    layer = SCConv(C, C, 3)
    with pytest.raises(ValueError, match='does not end in a deployed CRU: no ReLU can be appended'):
        layer.append_relu()
    layer.switch_to_deploy()
    layer.append_relu()
    assert (layer(torch.randn(1, C, 5, 5)) >= 0).all()


def test_copies_of_what_is_kept():
    model = randomized(shared_module())
    x = torch.randn(1, C, 5, 5)
    with torch.no_grad():
        assert relative(copy.deepcopy(switch_to_deploy(model))(x), model(x)) == 0
