import copy
import inspect
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from helpers import reference
from mmscconv import CRU, SRU, SCConv
from mmscconv.layers.scconv import ARRANGEMENTS


def test_equals_reference():
    layer = SCConv(16, 8, 3, stride=2, padding=1, bias=True).double()
    with torch.no_grad():
        layer.sru.gn.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    want = reference.cru(reference.of_sru(layer.sru, x), reference.weights_of(layer.cru), 8, stride=(2, 2))
    want += layer.bias.detach().numpy()[:, None, None]
    torch.testing.assert_close(layer(x), torch.from_numpy(want), rtol=1e-10, atol=1e-12)


def test_arrangements():
    x = torch.randn(2, 8, 7, 7)
    layers = {a: SCConv(8, 8, 3, stride=2, padding=1, arrangement=a) for a in ARRANGEMENTS}
    sru, cru, conv = layers['S+C'].sru, layers['S+C'].cru, layers['S'].conv
    for layer in layers.values():
        layer.load_state_dict(layers['S+C'].state_dict(), strict=False)
    pooled = nn.functional.avg_pool2d(sru(x), 2, ceil_mode=True)
    want = {
        'S+C': cru(sru(x)),
        'C+S': sru(cru(x)),
        'C&S': cru(x) + pooled,
        'S': nn.functional.conv2d(sru(x), conv.weight, stride=2, padding=1),
        'C': cru(x),
    }
    for name, layer in layers.items():
        torch.testing.assert_close(layer(x), want[name], msg=name)
    assert layers['C'].sru is None and layers['S'].cru is None


@pytest.mark.parametrize('arrangement', ARRANGEMENTS)
def test_conv2d_contract(arrangement):
    settings = itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2), (False, True))
    for kernel, stride, padding, dilation, bias in settings:
        args = (8, 8 if arrangement == 'C&S' else 4, kernel, stride, padding, dilation)
        conv, layer = nn.Conv2d(*args, bias=bias), SCConv(*args, bias=bias, arrangement=arrangement)
        for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups'):
            assert getattr(layer, name) == getattr(conv, name), name
        for name in ('transposed', 'output_padding', 'padding_mode'):
            assert getattr(layer, name) == getattr(conv, name), name
        assert (layer.bias is None) == (conv.bias is None)
        for size in ((9, 10), (10, 11)):
            x = torch.randn(2, 8, *size)
            assert layer(x).shape == conv(x).shape, (args, size)
    assert layer(x[0]).shape == conv(x[0]).shape
    torch.testing.assert_close(layer(x)[0], layer(x[0]))
    assert layer(x[:0]).shape == conv(x[:0]).shape


@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('kernel', [2, 3, (1, 4)])
def test_named_padding(padding, kernel):
    x = torch.randn(1, 8, 6, 7)
    layer, conv = SCConv(8, 8, kernel, padding=padding), nn.Conv2d(8, 8, kernel, padding=padding)
    assert layer(x).shape == conv(x).shape
    assert layer.padding == conv.padding


def test_argument_order_is_conv2d_s():
    ours = list(inspect.signature(SCConv).parameters)[:8]
    assert ours == list(inspect.signature(nn.Conv2d).parameters)[:8]


@pytest.mark.parametrize('arrangement', ARRANGEMENTS)
@pytest.mark.parametrize('inner_norm', [False, True])
def test_every_parameter_gets_a_gradient(arrangement, inner_norm):
    layer = SCConv(8, 8, 3, 2, 1, bias=True, inner_norm=inner_norm, arrangement=arrangement)
    layer(torch.randn(2, 8, 9, 9)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A convolution's bias in front of BN has no effect, hence no gradient beyond rounding.
        if not (inner_norm and name.endswith('.bias')):
            assert parameter.grad.abs().max() > 0, name


def test_state_dict_keys_are_stable():
    assert list(SCConv(8, 8, 3, bias=True).state_dict()) == [
        'bias',
        'sru.gn.weight',
        'sru.gn.bias',
        'cru.squeeze_up.weight',
        'cru.gwc.weight',
        'cru.pwc1.weight',
        'cru.squeeze_low.weight',
        'cru.pwc2.weight',
    ]
    inner = {k.split('.')[1] for k in SCConv(8, 8, 3, inner_norm=True).state_dict() if 'norm' in k}
    assert inner == {'norm_up', 'norm_low', 'norm1', 'norm2'}


def test_settings_reach_sru_and_cru():
    layer = SCConv(
        16, 8, 5, 2, 2, alpha=0.25, squeeze_ratio=1, gwc_groups=4, low_squeeze='output',
        inner_norm=True, num_groups=4, threshold=0.4, gate='hard',
    )  # fmt: skip
    assert (layer.sru.gn.num_groups, layer.sru.threshold, layer.sru.gate) == (4, 0.4, 'hard')
    channels = layer.cru.channels
    assert (channels.alpha, channels.squeeze_ratio, channels.groups, channels.low_squeeze) == (0.25, 1, 4, 'output')
    assert layer.cru.norm_up is not None
    text = repr(layer)
    for setting in ("gate='hard'", 'threshold=0.4', 'alpha=0.25', 'squeeze_ratio=1', 'groups=4', "arrangement='S+C'"):
        assert setting in text


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('arrangement', ARRANGEMENTS)
def test_low_precision_follows_float64(dtype, arrangement):
    layer = SCConv(32, 32, 3, 2, 1, arrangement=arrangement).to(dtype)
    x = torch.randn(2, 32, 9, 9).to(dtype)
    out = layer(x)
    want = layer.double()(x.double())
    assert out.dtype == dtype
    close = (out.double() - want).abs() < 8 * torch.finfo(dtype).eps * want.abs().max()
    # The gate is a step: behind CRU's rounding a position at the threshold may fall to the other side.
    assert close.double().mean() > (0.98 if arrangement == 'C+S' else 0.9999)


def test_layouts_agree():
    layer, x = SCConv(8, 8, 3, 2, 1, arrangement='C&S'), torch.randn(2, 16, 9, 9)
    want = layer(x[:, ::2].contiguous())
    torch.testing.assert_close(layer(x[:, ::2]), want)
    torch.testing.assert_close(layer(x[:, ::2].contiguous(memory_format=torch.channels_last)), want)


def test_runs_on_the_meta_device():
    with torch.device('meta'):
        assert SCConv(8, 8, 3, 2, 1)(torch.zeros(1, 8, 9, 9)).shape == (1, 8, 5, 5)


def test_another_dtype_on_the_meta_device():
    layer = SCConv(8, 8, 3, device='meta')
    with pytest.raises(ValueError, match=r'weights of torch\.float32 and got an input of torch\.float64'):
        layer(torch.zeros(1, 8, 9, 9, device='meta', dtype=torch.float64))


def test_autocast_of_another_dtype_is_one_graph():
    layer, x = SCConv(16, 16, 3, padding=1), torch.randn(1, 16, 5, 5).bfloat16()
    compiled = torch.compile(layer, backend='eager', fullgraph=True)
    with torch.autocast('cpu', torch.bfloat16):
        assert compiled(x).dtype == layer(x).dtype
    with pytest.raises(ValueError, match=r'or use torch\.autocast'):
        layer(x)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'groups': 2}, 'gwc_groups'),
        ({'arrangement': 'C-S'}, "arrangement='C-S'"),
        ({'arrangement': 'C&S', 'out_channels': 16}, 'in_channels = out_channels, got 8 and 16'),
        ({'in_channels': 9}, 'channels=9'),
        ({'stride': 0}, 'stride must be'),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SCConv(**{'in_channels': 8, 'out_channels': 8, 'kernel_size': 3, **kwargs})


@pytest.mark.parametrize('layer', [SCConv(8, 8, 3), CRU(8), SRU(8)], ids=lambda layer: type(layer).__name__)
def test_bad_input(layer):
    with pytest.raises(ValueError, match=r'got shape \(2, 4, 6, 6\)'):
        layer(torch.zeros(2, 4, 6, 6))


@pytest.mark.parametrize('settings', [{}, {'alpha': 1}, {'arrangement': 'S'}, {'arrangement': 'C&S'}], ids=str)
def test_window_larger_than_the_input(settings):
    layer = SCConv(8, 8, 5, padding=1, **settings)
    deployed = copy.deepcopy(layer)
    deployed.switch_to_deploy()
    for form in (layer, deployed):
        with pytest.raises(ValueError, match=r'window \(5, 5\) .* is larger than the input \(2, 9\)'):
            form(torch.zeros(1, 8, 2, 9))


@pytest.mark.parametrize('layer', [SCConv(8, 8, 3), CRU(8), SRU(8)], ids=lambda layer: type(layer).__name__)
def test_input_that_is_no_image(layer):
    with pytest.raises(ValueError, match=r'at least one position, got shape \(2, 8, 0, 6\)'):
        layer(torch.zeros(2, 8, 0, 6))
    with pytest.raises(ValueError, match=r'got torch.uint8: convert with .float\(\)'):
        layer(torch.zeros(2, 8, 6, 6, dtype=torch.uint8))


def test_numpy_s_integers_are_integers():
    eight, three = np.int64(8), np.int32(3)
    layer = SCConv(eight, eight, three, padding=(np.int64(1), 1), gwc_groups=np.int64(2), num_groups=np.int64(4))
    assert layer(torch.zeros(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    assert layer.kernel_size == (3, 3) and type(layer.kernel_size[0]) is int


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'stride': 2},
        {'inner_norm': True},
        {'gate': 'hard'},
        {'dilation': 2, 'padding': 2},
        {'gwc_groups': 3},
        {'kernel_size': 2, 'padding': 'same'},
        {'kernel_size': 2, 'padding': 'same', 'dilation': 3},
        {'kernel_size': (1, 5), 'padding': 0},
        {'stride': (3, 1), 'padding': (0, 2)},
        {'alpha': 0.75, 'gwc_groups': 1, 'low_squeeze': 'output', 'stride': 2},
        {'inner_norm': True, 'stride': 2, 'padding': 0},
    ],
    ids=str,
)
@pytest.mark.parametrize('output_is_kept', [False, True], ids=['', 'output-kept'])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_gradients_of_the_kernels_in_channels_last(settings, output_is_kept, training, called):
    """Where one kernel does SRU and squeezes, one GWC to fuse where its output is kept, and backward computes again."""
    settings = {'kernel_size': 3, 'padding': 1, **settings}
    conv = SCConv(24, 24, backend='native', **settings).train(training)
    conv.cru.output_is_kept = output_is_kept
    for p in conv.parameters():
        nn.init.normal_(p, 0.3, 0.5)
    for m in conv.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
    conv.sru.requires_grad_(settings.get('gate') != 'hard')
    reference = SCConv(24, 24, backend='plain', **settings).double().train(training)
    reference.load_state_dict(conv.state_dict())
    x = torch.randn(3, 24, 9, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    leaf = x.detach().double().requires_grad_()
    y, want = conv(x), reference(leaf)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    want.backward(upstream.double())
    by_batch = settings.get('inner_norm') and training  # other norms are folded
    forward = ['sru_squeeze', *(['batch_norm_forward'] * 2 + ['norm_fuse_forward'] if by_batch else ['transform_fuse'])]
    assert called[: len(forward)] == forward
    middle = ['norm_fuse_backward', *['batch_norm_backward'] * 2] if by_batch else ['transform_fuse_backward']
    assert called[-len(middle) - 1 :] == [*middle, 'sru_squeeze_backward']
    for (name, got), expected in zip(conv.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(x.grad, leaf.grad.float(), rtol=1e-4, atol=1e-4)
    for (name, p), q in zip(conv.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad.float(), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'channels-last'])
def test_hooks_see_what_a_kernel_would_do(layout, training):
    x = torch.randn(2, 16, 5, 5).contiguous(memory_format=layout)
    for name in (
        'sru',
        *(f'cru.{n}' for n in ('squeeze_up', 'squeeze_low', 'gwc', 'pwc1', 'pwc2', 'norm_up', 'norm2')),
    ):
        conv, seen = SCConv(16, 16, 3, padding=1, inner_norm=True, backend='native').train(training), []
        conv.get_submodule(name).register_forward_hook(lambda *_, n=name, s=seen: s.append(n))
        with torch.no_grad():
            conv(x)
        assert seen == [name]
