"""The deploy form equals the training form in eval mode."""

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from torch import nn

import mmscconv.models
from helpers.paths import ROOT
from helpers.plain import plain_copy
from helpers.running_tools import ONE_WORKER, run_tool
from helpers.trained import relative, trained
from mmscconv import SCConv, ops
from mmscconv.models import switch_to_deploy
from mmscconv.models.deploy_hook import DeployForm

CONFIGS = ROOT / 'configs'
SETTINGS = [
    {},
    {'stride': 2},
    {'stride': (3, 1), 'padding': (0, 2)},
    {'kernel_size': (1, 5), 'padding': 0, 'gwc_groups': 4},
    {'kernel_size': 4, 'padding': 'same', 'inner_norm': True},
    {'inner_norm': True},
    {'inner_norm': True, 'stride': 2, 'low_squeeze': 'output'},
    {'alpha': 0, 'inner_norm': True},
    {'alpha': 1, 'inner_norm': True},
    {'alpha': 0.75},
    {'alpha': 0.25, 'squeeze_ratio': 1, 'inner_norm': True},  # X_low has all of Y2's channels
    {'gate': 'hard', 'threshold': 0.48},
    {'dilation': 2},
    {'gwc_groups': 4},
    {'kernel_size': 2, 'padding': 'same'},  # PWC1 reads where the first tap does
    {'kernel_size': 2, 'padding': 'same', 'dilation': 3},  # where no tap does
    {'arrangement': 'C'},
    {'arrangement': 'C+S'},
    {'arrangement': 'C&S', 'inner_norm': True},
    {'arrangement': 'S'},
    {'bias': True},
]


def layer(settings, **others):
    defaults = {'kernel_size': 3, 'padding': 2 if settings.get('dilation') else 1}
    return SCConv(32, 32, **{**defaults, **others, **settings})


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'channels-last'])
@pytest.mark.parametrize('backend', ['plain', 'native'])
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_layer_and_the_norm_behind_it(settings, backend, layout):
    conv = layer(settings, backend=backend)
    model = trained(nn.Sequential(conv, nn.BatchNorm2d(32)))
    reference = plain_copy(model).double()
    x = torch.randn(3, 32, 9, 7).contiguous(memory_format=layout)
    switch_to_deploy(model)
    folded = settings.get('arrangement', 'S+C') in ('S+C', 'C') and not settings.get('bias')
    assert isinstance(model[1], nn.Identity if folded else nn.BatchNorm2d)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in conv.modules())
    want = reference(x.double()).float()
    with torch.no_grad():
        assert relative(model(x), want) < 1e-6
        x.mul_(2)  # nothing of the first call is kept
        assert relative(model(x), reference(x.double()).float()) < 1e-6
    assert relative(model(x), reference(x.double()).float()) < 1e-6  # gradients recorded: the other composition


@pytest.mark.parametrize('compiled', [False, True], ids=['eager', 'compiled'])
@pytest.mark.parametrize(
    'settings', [{}, {'stride': 2, 'inner_norm': True}, {'alpha': 0.75}, {'gate': 'hard'}, {'dilation': 2}], ids=str
)
def test_bf16_by_one_kernel(settings, compiled, called):
    """Maps are bf16, all arithmetic is fp32: nearer to float64 than plain operations in bf16 are."""
    conv = trained(layer(settings))
    conv.switch_to_deploy(trained(nn.BatchNorm2d(32)), relu=True)
    conv = conv.bfloat16().to(memory_format=torch.channels_last)
    x = torch.randn(3, 32, 9, 7).bfloat16().contiguous(memory_format=torch.channels_last)
    plain = plain_copy(conv)
    with torch.no_grad():
        want = plain_copy(conv).double()(x.double())
        got = (torch.compile(conv, fullgraph=True) if compiled else conv)(x)
        assert 'scconv' in called
        assert got.dtype is torch.bfloat16
        assert got.is_contiguous(memory_format=torch.channels_last)
        error, plain_error = ((y.double() - want).square().mean().sqrt() for y in (got, plain(x)))
        assert error < plain_error
        conv.cru.gwc.weight.data.mul_(2)  # no version counter shows it
        changed = plain_copy(conv).double()(x.double())
        assert (conv(x).double() - changed).square().mean().sqrt() < 2 * plain_error


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'channels-last'])
@pytest.mark.parametrize('settings', [{}, {'stride': 2, 'inner_norm': True}, {'alpha': 0.75}, {'alpha': 0}], ids=str)
def test_relu_behind_both(settings, layout):
    conv, norm = trained(nn.Sequential(layer(settings), nn.BatchNorm2d(32)))
    x = torch.randn(3, 32, 9, 7).contiguous(memory_format=layout)
    with torch.no_grad():
        want = norm(conv(x)).relu()
        conv.switch_to_deploy(norm, relu=True)
        got = conv(x)
    assert relative(got, want) < 1e-6
    assert ((got == 0) == (want == 0)).float().mean() > 0.999  # both signs of what is nearly 0
    assert (got == 0).any()


def test_not_a_number_is_not_hidden():
    conv = trained(layer({}))
    conv.switch_to_deploy(relu=True)
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    x[1, 3, 2, 2] = math.nan
    with torch.no_grad():
        assert conv(x)[1].isnan().any()


@pytest.mark.parametrize('distance', [-500.0, -50.0, 50.0, 500.0])
def test_weights_of_the_fuse_at_their_ends(distance):
    conv = trained(layer({'inner_norm': True}))
    conv.cru.norm1.bias.data += distance
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        want = conv(x)
        conv.switch_to_deploy()
        assert relative(conv(x), want) < 1e-6


def test_weights_loaded_later_are_used():
    # The kernels have them once more, in another order.
    first, second = (trained(layer({})) for _ in range(2))
    for conv in (first, second):
        conv.switch_to_deploy(trained(nn.BatchNorm2d(32)))
    assert 'cru.packed' not in first.state_dict()
    first.load_state_dict(second.state_dict())
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
        assert torch.equal(pickle.loads(pickle.dumps(first))(x), second(x))


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (5, 5), (31, 29)], ids=str)
@pytest.mark.parametrize('channels', [8, 24, 64, 136])
@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize(
    'settings', [{}, {'alpha': 0.75, 'gwc_groups': 1, 'low_squeeze': 'output', 'stride': 2}], ids=str
)
def test_kernels_over_the_convolutions(settings, size, channels, n, instructions):
    # Rows that are no multiple of a tile, columns of a panel, positions of a block; poisoned outputs.
    conv = trained(SCConv(channels, channels, 3, padding=1, backend='native', **settings))
    x = torch.randn(n, channels, *size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        want = conv(x)
        conv.switch_to_deploy()
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.use_deterministic_algorithms(True)
        try:
            got = [conv(x) for _ in range(2)]
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(*got)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('layout', 'deployed'),
    # Deployed in NCHW, the convolutions are the library's.
    [(torch.contiguous_format, False), (torch.channels_last, False), (torch.channels_last, True)],
    ids=['nchw', 'channels-last', 'deployed'],
)
def test_same_bits_with_any_number_of_threads(layout, deployed):
    conv = trained(SCConv(32, 32, 3, padding=1, backend='native'))
    x = torch.randn(2, 32, 37, 29).contiguous(memory_format=layout)
    with torch.no_grad():
        y = conv.sru(x)
    conv.switch_to_deploy()
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                found.append(conv(x) if deployed else ops.fuse(conv.sru(x), y, backend='native'))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_ops_that_reach_over_convolutions_are_registered_right():
    x = torch.randn(2, 8, 4, 3).contiguous(memory_format=torch.channels_last)
    affine, weight = torch.rand(8), torch.randn(2, 4, 1, 1)
    settings = (affine, affine, 4, 1e-5, 0.0, False)
    arguments = (x, *settings, weight, torch.randn(3, 4, 1, 1), torch.randn(2), torch.randn(3), (1, 1))
    up, low, mean, rstd = torch.ops.mmscconv.sru_squeeze(*arguments)
    torch.library.opcheck(torch.ops.mmscconv.sru_squeeze.default, arguments)
    torch.library.opcheck(torch.ops.mmscconv.sru_squeeze.default, (*arguments[:-1], (2, 2)))
    backward = (up, low, x, affine, affine, mean, rstd, *arguments[7:9], 0.0, False)
    torch.library.opcheck(torch.ops.mmscconv.sru_squeeze_backward.default, backward)
    leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments]
    # Without the one that compiles, which starts autograd's threads: no training could be forked after it.
    kinds = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    torch.library.opcheck(torch.ops.mmscconv.sru_squeeze.default, leaves, test_utils=kinds)
    up = torch.randn(2, 4, 4, 3).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(4, 4, 1, 1)
    window = (3, 3, 1, 1, 1, 1, 1, 1)
    arguments = (up, up, up, *weights, None, torch.randn(4), 2, window)
    torch.library.opcheck(torch.ops.mmscconv.transform_fuse.default, arguments)
    leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments]
    torch.library.opcheck(torch.ops.mmscconv.transform_fuse.default, leaves, test_utils=kinds)
    for own in (None, up):
        biases = (None, None) if own is None else (torch.randn(8), torch.randn(4))
        out, beta1 = torch.ops.mmscconv.transform_fuse(up, own, up, *weights, *biases, 2, window)
        backward = (out, up, own, up, *weights, *biases, beta1, 2, window)
        torch.library.opcheck(torch.ops.mmscconv.transform_fuse_backward.default, backward)
    squeezes = ops.packed(weight), ops.packed(torch.randn(2, 4, 1, 1)), None, torch.randn(2)
    weights = torch.randn(8, 1, 3, 3), torch.randn(8, 2, 1, 1), torch.randn(6, 2, 1, 1)
    for centre in (None, 4):
        transform = ops.packed_transform(*weights, 2, centre), None, torch.randn(6), affine, affine
        arguments = (x, *settings, squeezes, transform, (4, 2, 2, 8, 6), 2, window, centre, True)
        torch.library.opcheck(torch.ops.mmscconv.scconv.default, arguments)


@pytest.mark.parametrize('scconv', [{}, {'inner_norm': True, 'alpha': 0.75, 'low_squeeze': 'output'}], ids=str)
def test_backbone(scconv):
    model = MODELS.build(dict(type='SCConvResNet', depth=50, base_channels=16, norm_eval=False, scconv=scconv))
    trained(model)
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        want = model(x)
        model.switch_to_deploy()
        got = model(x)
    assert max(map(relative, got, want)) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(p.requires_grad for m in model.modules() if isinstance(m, SCConv) for p in m.parameters())


@pytest.mark.parametrize('config', ['mmdet.ResNet', 'mmpretrain.ResNet', 'CIFARResNet'])
def test_other_resnets(config):
    settings = dict(depth=20) if config == 'CIFARResNet' else dict(depth=50, deep_stem=True, avg_down=True)
    model = trained(MODELS.build(dict(type=config, **settings)))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        got = switch_to_deploy(model)(x)
    assert max(map(relative, got, want)) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize('config', ['mmdet.ResNet', 'mmpretrain.ResNet'])
def test_bottlenecks_leave_the_relu_to_the_layer(config):
    model = MODELS.build(dict(type=config, depth=50, base_channels=16, frozen_stages=-1, norm_eval=False))
    for block in model.layer2:
        mmscconv.models.conv2_swap.replace_conv2(block, dict(type='SCConv'))
    trained(model)
    keys = [key for key in model.state_dict() if 'layer1' in key and 'conv' in key]
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        want = model(x)
        got = switch_to_deploy(model)(x)
    assert max(map(relative, got, want)) < 1e-5
    kinds = [[type(block).__name__ for block in stage] for stage in (model.layer1, model.layer2)]
    assert kinds == [['Bottleneck'] * 3, ['DeployedBottleneck'] * 4]
    assert set(keys) <= set(model.state_dict())


def test_bottlenecks_that_do_more_stay():
    options = dict(type='SCConvResNet', depth=50, base_channels=16, norm_eval=False)
    plugin = dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2')
    for more in (dict(plugins=[plugin]), dict(scconv=dict(bias=True))):
        model = trained(MODELS.build({**options, **more}))
        x = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            want = model(x)
            got = switch_to_deploy(model)(x)
        assert max(map(relative, got, want)) < 1e-5
        assert type(model.layer1[0]).__name__ == 'Bottleneck'


@pytest.mark.parametrize('config', ['mmdet.ResNet', 'mmpretrain.ResNet'])
def test_bottlenecks_with_another_activation_stay(config):
    model = MODELS.build(dict(type=config, depth=50, base_channels=16, frozen_stages=-1, norm_eval=False))
    for block in model.layer2:
        mmscconv.models.conv2_swap.replace_conv2(block, dict(type='SCConv'))
        block.relu = nn.SiLU()
    trained(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        got = switch_to_deploy(model)(x)
    assert max(map(relative, got, want)) < 1e-5
    assert {type(block).__name__ for block in model.layer2} == {'Bottleneck'}


def test_rivals_keep_norms_that_do_not_follow_one_convolution():
    model = trained(nn.Sequential(mmscconv.layers.rivals.SPConv(16, 16, 3, padding=1), nn.BatchNorm2d(16)))
    x = torch.randn(2, 16, 5, 5)
    want = model(x)
    torch.testing.assert_close(switch_to_deploy(model)(x), want)


def test_what_cannot_be_folded():
    with pytest.raises(ValueError, match='only a BN with running statistics can be folded, got GroupNorm'):
        SCConv(8, 8, 3).switch_to_deploy(nn.GroupNorm(2, 8))
    with pytest.raises(ValueError, match='only a BN with running statistics'):
        SCConv(8, 8, 3).switch_to_deploy(nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(ValueError, match='does not end in its CRU: no norm'):
        SCConv(8, 8, 3, arrangement='C+S').switch_to_deploy(nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match='does not end in its CRU: no ReLU'):
        SCConv(8, 8, 3, bias=True).switch_to_deploy(relu=True)


def test_it_is_not_for_training():
    conv = SCConv(8, 8, 3, padding=1, backend='native')
    conv.switch_to_deploy(nn.BatchNorm2d(8))
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r'train the model before switch_to_deploy\(\)'):
        conv(x).sum().backward()


def test_test_tool_in_deploy_form(digits, digits_run, tmp_path):
    found = []
    options = [*ONE_WORKER, 'model.test_cfg.score_thr=0.0', 'default_hooks.ema.type=EMAHook']
    for flags in ([], ['--deploy']):  # averaged weights, too: their hook would exchange parts of two forms
        out = tmp_path / f'results{len(flags)}.pkl'
        run_tool(
            'test.py', CONFIGS / 'retinanet_scconv_r18_digits.py', digits_run / 'epoch_1.pth', '--data-root', digits,
            '--work-dir', tmp_path, '--out', out, *flags, options=options,
        )  # fmt: skip
        found.append([r['pred_instances']['scores'] for r in pickle.loads(out.read_bytes())])
    assert len(found[0]) == 4
    for plain, deployed in zip(*found, strict=True):
        torch.testing.assert_close(deployed, plain, rtol=1e-3, atol=1e-4)
    assert not torch.equal(*map(torch.cat, found))  # it was another computation


def test_averaged_weights_are_taken_before_the_form_changes():
    """mmpretrain's hook holds them until a test begins."""
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    average = copy.deepcopy(model)
    average[0].weight.data *= 2

    class Averages(EMAHook):
        def __init__(self):
            pass

        def before_test_epoch(self, runner):
            runner.model.load_state_dict(average.state_dict())

    hooks = [Averages(), DeployForm()]
    runner = SimpleNamespace(model=model, hooks=hooks, _hooks=hooks)
    hooks[1].before_test(runner)
    assert runner._hooks == [hooks[1]]
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(model(x), average.eval()(x))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'channels-last'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_with_a_folded_norm(dtype, layout):
    model = switch_to_deploy(trained(nn.Sequential(layer({'inner_norm': True}), nn.BatchNorm2d(32))).eval())
    x = torch.randn(2, 32, 9, 7).contiguous(memory_format=layout)
    with torch.no_grad():
        want = model(x)
        got = model.to(dtype)(x.to(dtype))
    assert got.dtype is dtype and relative(got.float(), want) < 0.05


def test_a_hook_may_keep_its_tensor():
    """Where kernels may, they write the layer's output over the GWC's."""
    model = switch_to_deploy(trained(nn.Sequential(layer({}))).eval())
    kept = []
    gwc = model[0].cru.gwc
    gwc.register_forward_hook(lambda module, inputs, output: kept.append((inputs[0], output)))
    x = torch.randn(2, 32, 9, 7)
    with torch.no_grad():
        model(x)
        ((given, output),) = kept
        assert torch.equal(output, type(gwc).forward(gwc, given))
