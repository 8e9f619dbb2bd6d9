import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmscconv.layers.rivals import GhostConv, OctaveConv2d, OctConv, SlimConv, SPConv, TiedConv

CASES = {
    'SPConv': (SPConv, {}),
    'SPConv-3/4': (SPConv, {'alpha': 0.75}),
    'TiedConv': (TiedConv, {}),
    'GhostConv': (GhostConv, {}),
    'GhostConv-full': (GhostConv, {'pointwise': False, 'ratio': 3}),
    'SlimConv': (SlimConv, {}),
    'SlimConv-4/3': (SlimConv, {'k': 4 / 3}),
    'OctConv': (OctConv, {}),
}
cases = pytest.mark.parametrize(('layer', 'settings'), CASES.values(), ids=CASES)


def parameters(layer):
    return sum(p.numel() for p in layer.parameters())


def batch_norm(x, norm):
    """BN in training mode, from its definition."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


@cases
def test_conv2d_contract(layer, settings):
    for kernel, stride, padding, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2)):
        args = (8, 16, kernel, stride, padding, dilation)
        conv, module = nn.Conv2d(*args), layer(*args, **settings)
        for name in ('in_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups'):
            assert getattr(module, name) == getattr(conv, name), name
        for size in ((9, 10), (10, 11)):
            x = torch.randn(2, 8, *size)
            want = conv(x).shape
            assert module(x).shape == (2, module.out_channels, *want[2:]), (args, size)
    assert module.eval()(x[0]).shape == (module.out_channels, *want[2:])
    torch.testing.assert_close(module(x)[0], module(x[0]))
    assert module(x[:0]).shape[0] == 0


@cases
def test_arguments_are_conv2d_s(layer, settings):
    ours = list(inspect.signature(layer).parameters)[:8]
    assert ours == list(inspect.signature(nn.Conv2d).parameters)[:8]
    for padding in ('same', 'valid'):
        conv = nn.Conv2d(8, 8, 3, padding=padding)
        module = layer(8, 8, 3, padding=padding, bias=True, **settings)
        assert module.bias is not None and module.padding == padding
        assert module(torch.randn(2, 8, 6, 7)).shape[2:] == conv(torch.randn(2, 8, 6, 7)).shape[2:]


@cases
def test_out_channels(layer, settings):
    module = layer(8, 16, 3, padding=1, **settings)
    assert module.out_channels == (12 if settings == {'k': 4 / 3} else 16)
    assert module(torch.randn(2, 8, 5, 5)).shape == (2, module.out_channels, 5, 5)


@cases
@pytest.mark.parametrize('stride', [1, 2])
def test_every_parameter_gets_a_gradient(layer, settings, stride):
    module = layer(32, 32, 3, stride, 1, bias=True, **settings)
    module(torch.randn(4, 32, 9, 9)).pow(3).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name != 'cheap.bias':  # in front of BN a bias has no effect
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ('layer', 'settings', 'want'),
    [
        # C = 32, k = 3: the formulas of the papers, by hand.
        (SPConv, {}, 3.25 * 32**2 + 5 * 32),
        (SPConv, {'alpha': 0.75}, (9 * 0.75 / 2 + 0.75 + 0.25) * 32**2 + 5 * 32),
        (TiedConv, {}, 9 / 4 * 32**2),
        (TiedConv, {'blocks': 4}, 9 / 16 * 32**2),
        (GhostConv, {}, 0.5 * 32**2 + 9 * 16 + 2 * 32),
        (GhostConv, {'pointwise': False}, 4.5 * 32**2 + 9 * 16 + 2 * 32),
        # Upper 9/4, squeeze 1/8, lower 9/16; BN on 16, 8, 8; attention 32 -> 1 -> 32, its BN and bias.
        (SlimConv, {'k': 4 / 3}, (9 / 4 + 1 / 8 + 9 / 16) * 32**2 + 2 * (16 + 8 + 8) + 2 * 32 + 2 + 32),
        (SlimConv, {}, (9 / 4 + 1 / 8 + 9 / 8) * 32**2 + 2 * (16 + 8 + 16) + 2 * 64 + 4 + 32),
        (OctConv, {}, 9 * 32**2),
    ],
)
def test_parameters_by_hand(layer, settings, want):
    assert parameters(layer(32, 32, 3, padding=1, **settings)) == want
    assert parameters(layer(32, 32, 3, stride=2, padding=1, **settings)) == want


def test_one_tied_block_is_conv2d():
    x, conv, tied = torch.randn(2, 8, 9, 9), nn.Conv2d(8, 16, 3, 2, 1), TiedConv(8, 16, 3, 2, 1, bias=True, blocks=1)
    tied.load_state_dict(conv.state_dict())
    torch.testing.assert_close(tied(x), conv(x))


def test_tied_blocks_are_equal_groups():
    x, tied = torch.randn(2, 12, 9, 9), TiedConv(12, 6, 3, 2, 1, bias=True, blocks=3)
    grouped = F.conv2d(x, tied.weight.repeat(3, 1, 1, 1), tied.bias.repeat(3), 2, 1, groups=3)
    torch.testing.assert_close(tied(x), grouped)


def test_octave_without_low_channels_is_conv2d():
    x, conv, octave = (
        torch.randn(2, 8, 9, 9),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        OctConv(8, 16, 3, 1, 1, alpha=0),
    )
    octave.octave.hh.load_state_dict(conv.state_dict())
    torch.testing.assert_close(octave(x), conv(x))


def test_octave_on_smooth_maps():
    # On constant maps, away from the border, halving and enlarging change nothing: all four paths add up.
    octave = OctConv(4, 4, 3, padding=1).octave
    x = torch.randn(1, 4, 1, 1).expand(1, 4, 16, 16)
    weight = torch.cat(
        (torch.cat((octave.hh.weight, octave.lh.weight), 1), torch.cat((octave.hl.weight, octave.ll.weight), 1))
    )
    layer = OctConv(4, 4, 3, padding=1)
    layer.octave = octave
    want = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(layer(x)[..., 4:-4, 4:-4], want[..., 4:-4, 4:-4])


def test_octave_says_that_it_takes_no_low_map():
    with pytest.raises(ValueError, match=r'got a low map, but has no low input channels \(alpha_in\)'):
        OctaveConv2d(8, 12, 3, alpha_in=0)((torch.randn(1, 8, 6, 6), torch.randn(1, 4, 3, 3)))


def test_tied_conv_refuses_settings_out_of_range():
    with pytest.raises(ValueError, match='stride must be one or two integers from 1 to 2147483647, got 0'):
        TiedConv(8, 16, 3, stride=0)


def test_octave_pairs():
    high, low = torch.randn(1, 6, 7, 8), torch.randn(1, 2, 4, 4)
    same = OctaveConv2d(8, 12, 3, alpha_in=0.25, alpha_out=0.5)((high, low))
    assert [tuple(m.shape) for m in same] == [(1, 6, 7, 8), (1, 6, 4, 4)]
    strided = OctaveConv2d(8, 12, 3, stride=2, alpha_in=0.25, alpha_out=0.5)((high, low))
    assert [tuple(m.shape) for m in strided] == [(1, 6, 4, 4), (1, 6, 2, 2)]
    merged = OctaveConv2d(8, 12, 1, alpha_in=0.25, alpha_out=0)((high, low))
    assert merged[0].shape == (1, 12, 7, 8) and merged[1] is None


def test_sp_conv_by_hand():
    layer, x = SPConv(8, 6, 3, padding=1), torch.randn(3, 8, 5, 5)
    y1 = F.conv2d(x[:, :4], layer.gwc.weight, padding=1, groups=2) + F.conv2d(x[:, :4], layer.pwc.weight)
    y1 = batch_norm(y1, layer.norm1)
    y2 = batch_norm(F.conv2d(x[:, 4:], layer.cheap.weight, layer.cheap.bias), layer.norm2)
    e1, e2 = (y.mean((2, 3), keepdim=True).exp() for y in (y1, y2))
    torch.testing.assert_close(layer(x), (e1 * y1 + e2 * y2) / (e1 + e2), rtol=1e-4, atol=1e-5)


def test_ghost_conv_by_hand():
    layer, x = GhostConv(8, 5, 3, padding=1), torch.randn(3, 8, 5, 5)
    primary = F.relu(batch_norm(F.conv2d(x, layer.primary[1].weight), layer.primary[2]))
    cheap = F.relu(batch_norm(F.conv2d(primary, layer.cheap[0].weight, padding=1, groups=3), layer.cheap[1]))
    torch.testing.assert_close(layer(x), torch.cat((primary, cheap), 1)[:, :5], rtol=1e-4, atol=1e-5)


def test_slim_conv_by_hand():
    layer, x = SlimConv(8, 8, 3, padding=1, k=4 / 3), torch.randn(4, 8, 5, 5)
    a = layer.attention
    w = F.relu(batch_norm(F.conv2d(x.mean((2, 3), keepdim=True), a[1].weight), a[2]))
    w = torch.sigmoid(F.conv2d(w, a[4].weight, a[4].bias))
    flipped = w[:, [7, 6, 5, 4, 3, 2, 1, 0]]
    upper = w[:, :4] * x[:, :4] + w[:, 4:] * x[:, 4:]
    lower = flipped[:, :4] * x[:, :4] + flipped[:, 4:] * x[:, 4:]
    upper = batch_norm(F.conv2d(upper, layer.upper[0].weight, padding=1), layer.upper[1])
    lower = F.relu(batch_norm(F.conv2d(lower, layer.lower[0].weight), layer.lower[1]))
    lower = batch_norm(F.conv2d(lower, layer.lower[3].weight, padding=1), layer.lower[4])
    torch.testing.assert_close(layer(x), torch.cat((upper, lower), 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('layer', 'kwargs', 'message'),
    [
        (SPConv, {'groups': 2}, 'groups must be 1, got 2'),
        (SPConv, {'alpha': 1}, 'into 8 and 0'),
        (SPConv, {'alpha': 3 / 8}, '= 3 and out_channels = 8'),
        (TiedConv, {'blocks': 3}, 'in_channels=8 and out_channels=8 .* blocks=3'),
        (TiedConv, {'groups': 2}, 'groups must be 1, got 2'),
        (GhostConv, {'ratio': 1}, 'got ratio=1'),
        (GhostConv, {'cheap_kernel_size': 4}, 'odd, got 4'),
        (SlimConv, {'k': 2}, 'k must be 1 or 4/3, got k=2'),
        (SlimConv, {'in_channels': 6}, 'multiples of 4, got in_channels=6'),
        (OctConv, {'alpha': 1}, '8 of 8 channels low'),
        (OctConv, {'out_channels': 0}, 'out_channels=0'),
        (OctConv, {'stride': 0}, 'stride must be'),
    ],
    ids=str,
)
def test_bad_arguments(layer, kwargs, message):
    with pytest.raises(ValueError, match=message):
        layer(**{'in_channels': 8, 'out_channels': 8, 'kernel_size': 3, **kwargs})


@cases
def test_bad_input(layer, settings):
    with pytest.raises(ValueError, match=r'got shape \(2, 4, 6, 6\)'):
        layer(8, 8, 3, **settings)(torch.zeros(2, 4, 6, 6))
