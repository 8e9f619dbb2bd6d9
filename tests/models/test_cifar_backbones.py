import pytest
import torch
from torch import nn

pytest.importorskip('mmpretrain')
from mmengine.registry import MODELS

import mmscconv.models
from mmscconv import SCConv
from mmscconv.layers.rivals import OctaveConv2d, SlimConv, TiedConv

# Backbone, its settings, how many convolutions are replaced, channels and size of its output on 32 x 32.
NETWORKS = {
    'CIFARResNet': ({}, 27, (64, 8, 8)),
    'CIFARBottleneckResNet': ({}, 16, (2048, 4, 4)),
    'CIFARWideResNet': ({'widen_factor': 2}, 12, (128, 8, 8)),
    'CIFARResNeXt': ({}, 9, (1024, 8, 8)),
    'CIFARDenseNet': ({}, 58, (1024, 4, 4)),
}
SCCONV = {'type': 'SCConv', 'low_squeeze': 'output'}
networks = pytest.mark.parametrize(('name', 'settings', 'replaced', 'shape'), [(k, *v) for k, v in NETWORKS.items()])


def build(name, conv_cfg=None, **settings):
    return MODELS.build({'type': name, 'conv_cfg': conv_cfg, **settings})


@networks
def test_replaces_exactly_these(name, settings, replaced, shape, monkeypatch):
    monkeypatch.setattr(nn.init, 'kaiming_uniform_', lambda tensor, **_: tensor)  # values are not asked for
    plain, network = build(name, **settings), build(name, SCCONV, **settings)
    swapped = [n for n, m in network.named_modules() if isinstance(m, SCConv)]
    assert len(swapped) == replaced and all(n.endswith('conv2') for n in swapped)
    old, new = dict(plain.named_modules()), dict(network.named_modules())
    for n in swapped:
        assert isinstance(old[n], nn.Conv2d) and old[n].kernel_size == (3, 3)
        for attribute in ('in_channels', 'out_channels', 'stride', 'padding'):
            assert getattr(new[n], attribute) == getattr(old[n], attribute), (n, attribute)
    # All else is as it was, and no other convolution of the plain network is missing.
    kept = {k: v.shape for k, v in network.state_dict().items() if not any(k.startswith(f'{n}.') for n in swapped)}
    assert kept == {
        k: v.shape for k, v in plain.state_dict().items() if not any(k.startswith(f'{n}.') for n in swapped)
    }


@networks
def test_output_and_gradients(name, settings, replaced, shape):
    network = build(name, {'type': 'SCConv', 'low_squeeze': 'output', 'inner_norm': True}, **settings)
    network.init_weights()
    out = network(torch.randn(2, 3, 32, 32))
    assert isinstance(out, tuple) and len(out) == 1 and out[0].shape == (2, *shape)
    out[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize('name', ['CIFAROctResNet', 'OctResNet'])
def test_octaves(name):
    network = MODELS.build({'type': name})
    convs = [m for m in network.modules() if isinstance(m, OctaveConv2d)]
    assert len(convs) == 3 * 16 + 4
    low = [(c.in_low > 0, c.out_low > 0) for c in convs]
    # Low maps come in with the first block's conv1 and shortcut, and go with those of the last stage.
    assert low.count((False, True)) == 2 and low.count((True, False)) == 2 and low.count((False, False)) == 8
    (out,) = network(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 2048, *((4, 4) if name.startswith('CIFAR') else (1, 1)))
    out.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with pytest.raises(ValueError, match=r'out_indices must be \(3,\), got \(2, 3\)'):
        MODELS.build({'type': name, 'out_indices': (2, 3)})
    with pytest.raises(ValueError, match='got 18'):
        MODELS.build({'type': name, 'depth': 18})


@pytest.mark.parametrize('setting', [dict(with_cp=True), dict(drop_path_rate=0.1)], ids=str)
def test_octaves_refuse_what_their_blocks_do_not_have(setting):
    with pytest.raises(ValueError, match=f'octave blocks have no {next(iter(setting))}'):
        MODELS.build(dict(type='CIFAROctResNet', **setting))


def test_octave_stem_and_strides():
    network = MODELS.build({'type': 'CIFAROctResNet'})
    high, low = network.layer2(network.layer1(torch.randn(1, 64, 32, 32)))
    assert high.shape == (1, 256, 16, 16) and low.shape == (1, 256, 8, 8)


@pytest.mark.parametrize('name', ['ConvResNet', 'CIFARBottleneckResNet', 'CIFARResNeXt'])
def test_slim_conv_narrows_what_follows(name):
    network = MODELS.build(
        {'type': name, 'conv_cfg': {'type': 'SlimConv', 'k': 4 / 3}, **({'depth': 50} if name == 'ConvResNet' else {})}
    )
    for stage in network.res_layers:
        for block in getattr(network, stage):
            assert isinstance(block.conv2, SlimConv) and isinstance(block.norm2, nn.Identity)
            assert block.conv3.in_channels == block.conv2.out_channels == 3 * block.conv2.in_channels // 4
    network(torch.randn(2, 3, 32, 32))


def test_slim_conv_needs_a_bottleneck():
    with pytest.raises(ValueError, match='gives 12 channels where BasicBlock adds 16'):
        build('CIFARResNet', {'type': 'SlimConv', 'k': 4 / 3})


def test_conv_resnet():
    network = MODELS.build(
        {
            'type': 'ConvResNet',
            'depth': 18,
            'base_channels': 8,
            'conv_cfg': {'type': 'TiedConv'},
            'stage_with_conv': (False, True, True, False),
        }
    )
    assert [n for n, m in network.named_modules() if isinstance(m, TiedConv)] == [
        f'layer{stage}.{block}.conv2' for stage in (2, 3) for block in (0, 1)
    ]
    with pytest.raises(ValueError, match='stage_with_conv needs one entry for each of the 4 stages'):
        MODELS.build({'type': 'ConvResNet', 'depth': 18, 'stage_with_conv': (True,)})
    with pytest.raises(ValueError, match='stage 1: DCN and TiedConv'):
        MODELS.build(
            {
                'type': 'ConvResNet',
                'depth': 50,
                'conv_cfg': {'type': 'TiedConv'},
                'stage_with_conv': (False, True, True, True),
                'dcn': {'type': 'DCN'},
                'stage_with_dcn': (False, True, True, True),
            }
        )


def test_plain_conv_resnet_is_mmdet_s():
    settings = {'depth': 18, 'base_channels': 8}
    ours = MODELS.build({'type': 'ConvResNet', **settings}).state_dict()
    theirs = MODELS.build({'type': 'mmdet.ResNet', **settings}).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(('name', 'depth'), [('CIFARResNet', 51), ('CIFARWideResNet', 27)])
def test_bad_depth(name, depth):
    with pytest.raises(ValueError, match=f'got {depth}'):
        build(name, depth=depth)


def test_conv_cfg_may_set_the_bias():
    assert build('CIFARDenseNet', {'type': 'TiedConv', 'bias': True}).stages[0].block[0].conv2.bias is not None
    assert build('CIFARDenseNet', {'type': 'TiedConv'}).stages[0].block[0].conv2.bias is None


def test_frozen_layers_stay_frozen():
    network = build('CIFARDenseNet', SCCONV, frozen_stages=1)
    frozen = [p.requires_grad for p in network.stages[0].parameters()]
    assert not any(frozen) and all(p.requires_grad for p in network.stages[1].parameters())


@pytest.mark.parametrize(
    'name', ['SCConv', 'SPConv', 'TiedConv', 'GhostConv', 'SlimConv', 'OctConv', 'PFLayer', 'VersatileConv']
)
def test_registered_once_by_plain_name(name):
    assert MODELS.get(name).__name__ == name
    assert mmscconv.models.SCCONV_TYPE in MODELS.module_dict


def test_wide_resnet_is_biased_but_for_what_was_replaced():
    # Too little for the counts' 0.1 %, but in the paper's 36.55 M / 5.96 G.
    plain = build('CIFARWideResNet', depth=10, widen_factor=1)
    assert all(m.bias is not None for m in plain.modules() if isinstance(m, nn.Conv2d))
    replaced = build('CIFARWideResNet', {'type': 'TiedConv'}, depth=10, widen_factor=1)
    unbiased = [name for name, m in replaced.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    assert unbiased == [f'stages.{i}.0.conv2.conv' for i in range(3)]
