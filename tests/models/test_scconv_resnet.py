import copy

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from mmscconv import SCConv
from mmscconv.models import SCConvResNet

TINY = {'base_channels': 16, 'stem_channels': 8}
DEPTHS = {18: 8, 34: 16, 50: 16, 101: 33, 152: 50}  # how many conv2 there are


def scconvs(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, SCConv)}


@pytest.mark.parametrize('registry', [MODELS, MMDET_MODELS, MMPRETRAIN_MODELS], ids=lambda r: r.scope)
def test_registered_for_everyone(registry):
    assert isinstance(registry.build({'type': 'SCConvResNet', 'depth': 18, **TINY}), SCConvResNet)
    with registry.switch_scope_and_registry(registry.scope):
        conv = build_conv_layer({'type': 'SCConv', 'alpha': 0.75}, 16, 32, 3, stride=2, padding=1, bias=False)
        module = ConvModule(16, 32, 3, padding=1, conv_cfg={'type': 'SCConv'}, norm_cfg={'type': 'BN'})
    assert isinstance(conv, SCConv)
    assert conv.cru.channels.alpha == 0.75
    module.init_weights()
    assert module(torch.zeros(1, 16, 5, 5)).shape == (1, 32, 5, 5)


@pytest.mark.parametrize('depth', DEPTHS)
def test_exactly_conv2_is_replaced(depth):
    with torch.device('meta'):
        ours, plain = SCConvResNet(depth), ResNet(depth)
    replaced = scconvs(ours)
    assert len(replaced) == DEPTHS[depth]
    originals = dict(plain.named_modules())
    for name, layer in replaced.items():
        assert name.endswith('.conv2')
        for attribute in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation'):
            assert getattr(layer, attribute) == getattr(originals[name], attribute)
    rest = {k: v.shape for k, v in ours.state_dict().items() if '.conv2.' not in k}
    assert rest == {k: v.shape for k, v in plain.state_dict().items() if not k.endswith('.conv2.weight')}


@pytest.mark.parametrize(('depth', 'alpha', 'printed'), [(50, 1 / 2, 16.78), (50, 3 / 4, 17.69), (101, 1 / 2, 28.00)])
def test_the_paper_s_parameters(depth, alpha, printed):
    with torch.device('meta'):
        model = SCConvResNet(depth, scconv={'alpha': alpha, 'low_squeeze': 'output', 'inner_norm': True})
    count = sum(p.numel() for name, p in model.named_parameters() if '.gn.' not in name)
    assert round((count + 2048 * 1000 + 1000) / 1e6, 2) == pytest.approx(printed, abs=0.011)


OPTIONS = [
    {},
    {'style': 'caffe'},
    {'deep_stem': True},
    {'avg_down': True},
    {'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, 4)},
    {'out_indices': (1, 3)},
    {'num_stages': 2, 'strides': (1, 2), 'dilations': (1, 1), 'out_indices': (1,)},
    {'stage_with_scconv': (False, True, False, True)},
    {'scconv': {'arrangement': 'C+S', 'alpha': 0.75, 'inner_norm': True}},
    {'scconv': {'gate': 'hard'}},
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('depth', [18, 50])
def test_options_keep_resnet_s_shapes_and_train(depth, options):
    torch.manual_seed(1)
    ours = SCConvResNet(depth, norm_eval=False, **TINY, **options)
    plain_options = {k: v for k, v in options.items() if k not in ('scconv', 'stage_with_scconv')}
    plain = ResNet(depth, norm_eval=False, **TINY, **plain_options)
    x = torch.randn(2, 3, 65, 49)
    outs = ours(x)
    assert [o.shape for o in outs] == [o.shape for o in plain(x)]
    sum(o.square().mean() for o in outs).backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    stages = options.get('stage_with_scconv', (True,) * ours.num_stages)
    for i, stage in enumerate(stages[: ours.num_stages]):
        assert bool(scconvs(getattr(ours, f'layer{i + 1}'))) == stage


def test_plugins_sit_behind_conv2():
    plugins = [{'cfg': {'type': 'ContextBlock', 'ratio': 1 / 4}, 'stages': (False, True, True, True), 'position': p}
               for p in ('after_conv2', 'after_conv3')]  # fmt: skip
    plugins[1]['cfg']['postfix'] = '_b'
    model = SCConvResNet(50, plugins=plugins, **TINY)
    assert model.layer2[0].with_plugins
    assert model(torch.randn(1, 3, 64, 64))[3].shape == (1, 512, 2, 2)


def test_frozen_stages_cover_the_gate():
    model = SCConvResNet(50, frozen_stages=2, norm_eval=False, **TINY)
    model.train()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(('conv1', 'bn1', 'layer1', 'layer2'))
        assert parameter.requires_grad != frozen, name
    assert not model.layer2[0].conv2.sru.gn.training
    assert model.layer3[0].conv2.sru.gn.training


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval_reaches_the_inner_norms(norm_eval):
    model = SCConvResNet(18, norm_eval=norm_eval, scconv={'inner_norm': True}, **TINY)
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 40
    assert {m.training for m in norms} == {not norm_eval}


@pytest.mark.parametrize('depth', [18, 50])
def test_checkpointed_equals_plain(depth):
    plain = SCConvResNet(depth, norm_eval=True, scconv={'inner_norm': True}, **TINY)
    checkpointed = SCConvResNet(depth, with_cp=True, norm_eval=True, scconv={'inner_norm': True}, **TINY)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for model in (plain, checkpointed):
        model.train()
        sum(o.square().mean() for o in model(x.clone().requires_grad_())).backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name)


@pytest.mark.parametrize(('depth', 'last'), [(18, 'bn2'), (50, 'bn3')])
@pytest.mark.parametrize('zero', [False, True])
def test_zero_init_residual(depth, last, zero):
    model = SCConvResNet(depth, zero_init_residual=zero, **TINY)
    model.init_weights()
    assert all(getattr(b, last).weight.any() != zero for b in model.layer2)
    gammas = [m.sru.gn.weight for m in scconvs(model).values()]
    assert all((g == 1).all() for g in gammas)


def test_settings_are_not_shared_or_changed():
    settings = {'alpha': 0.25}
    before = copy.deepcopy(settings)
    model = SCConvResNet(18, scconv=settings, base_channels=32)
    assert settings == before
    assert {m.cru.channels.alpha for m in scconvs(model).values()} == {0.25}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dcn': {'type': 'DCN'}, 'stage_with_dcn': (False, True, True, True)}, 'stage 1: DCN and SCConv'),
        ({'stage_with_scconv': (True, True)}, 'one entry for each of the 4 stages'),
        ({'scconv': {'gwc_groups': 32}}, 'u = 4 .*groups = 32.*groups=4'),
    ],
    ids=['dcn', 'stages', 'channels'],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SCConvResNet(50, **TINY, **options)


def test_dcn_beside_scconv():
    stages = (True, True, False, False)
    model = SCConvResNet(
        50, stage_with_scconv=stages, dcn={'type': 'DCN', 'deform_groups': 1},
        stage_with_dcn=(False, False, True, True), **TINY,
    )  # fmt: skip
    assert type(model.layer3[0].conv2).__name__ == 'DeformConv2dPack'
    assert len(scconvs(model)) == 3 + 4


def test_plain_resnet_weights_fill_all_but_conv2(tmp_path, caplog):
    # torchvision://resnet50 has the keys of torchvision's model; only the download is left out here.
    from torchvision.models import resnet50

    torch.save(resnet50().state_dict(), tmp_path / 'resnet50.pth')
    model = SCConvResNet(50, init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'resnet50.pth')})
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    model.init_weights()
    logger.removeHandler(caplog.handler)
    weights = torch.load(tmp_path / 'resnet50.pth', weights_only=True)
    loaded = {k: v for k, v in model.state_dict().items() if k in weights}
    assert len(loaded) == len([k for k in weights if not k.startswith('fc') and not k.endswith('conv2.weight')])
    assert all(torch.equal(v, weights[k]) for k, v in loaded.items())
    # Keys that did not match are listed by name.
    assert 'layer1.0.conv2.weight' in caplog.text
    assert 'layer1.0.conv2.cru.gwc.weight' in caplog.text
