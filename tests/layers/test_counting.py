"""Tools that count work find all of it in the rivals, whether they count operators or hook modules of exact types."""

import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.conv_layers import RIVALS
from mmscconv.layers.arguments import numeric_padding
from mmscconv.layers.rivals import OctConv, TiedConv

SHAPE = (64, 16, 16)


def by_mmengine(model):
    return get_model_complexity_info(model, input_shape=SHAPE, show_table=False, show_arch=False)['flops']


def by_torch(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, *SHAPE))
    return counter.get_total_flops() / 2


def by_fvcore(model):
    analysis = pytest.importorskip('fvcore.nn').FlopCountAnalysis(model, torch.randn(1, *SHAPE))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def by_thop(model):
    profile = pytest.importorskip('thop').profile
    return profile(model, (torch.randn(1, *SHAPE),), verbose=False)[0]


def by_ptflops(model):
    count = pytest.importorskip('ptflops').get_model_complexity_info
    with contextlib.redirect_stdout(io.StringIO()):
        return count(model, SHAPE, as_strings=False, print_per_layer_stat=False, backend='pytorch')[0]


def by_torchinfo(model):
    summary = pytest.importorskip('torchinfo').summary
    return summary(model, input_size=(1, *SHAPE), verbose=0).total_mult_adds


TOOLS = [by_mmengine, by_torch, by_fvcore, by_thop, by_ptflops, by_torchinfo]
PADDINGS = {'numbers': {'padding': 1}, 'same': {'padding': 'same'}, 'strided': {'padding': 1, 'stride': 2}}


def convolutions(model):
    """Multiply-adds of the convolutions, from their inputs and weights."""
    counts = []
    handles = [
        m.register_forward_hook(lambda m, _, y: counts.append(y.numel() * m.weight[0].numel()))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.randn(1, *SHAPE))
    for handle in handles:
        handle.remove()
    return sum(counts)


@pytest.mark.parametrize('tool', TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize('padding', PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize('name', [name for name in RIVALS if name not in ('PFLayer', 'VersatileConv')])
def test_counts(name, padding, tool):
    layer, settings = RIVALS[name]
    model = nn.Sequential(layer(64, 64, 3, **padding, **settings)).eval()
    want = convolutions(model)
    # Norms, activations, pooling and the fuse are counted by some.
    assert want <= tool(model) <= 1.25 * want


def test_the_inner_convolution_of_tied_blocks_is_counted_in_full():
    # 9 * (64/2)^2 weights at 2 * 16 * 16 positions.
    want = 9 * 32 * 32 * 2 * 16 * 16
    assert convolutions(TiedConv(64, 64, 3, padding=1)) == want
    assert by_thop(nn.Sequential(TiedConv(64, 64, 3, padding=1))) == want


@pytest.mark.parametrize('kernel', [1, 2, 3, 4, (2, 3), (5, 4)], ids=str)
@pytest.mark.parametrize('dilation', [1, 2, 3, (1, 2)], ids=str)
def test_octave_pads_as_same_does(kernel, dilation):
    layer = OctConv(8, 8, kernel, padding='same', dilation=dilation)
    octave, x = layer.octave, torch.randn(2, 4, 9, 11)
    assert not any(isinstance(m.padding, str) for m in octave.modules() if isinstance(m, nn.Conv2d))
    high, low = octave((x, F.avg_pool2d(x, 2, ceil_mode=True)))

    def same(conv, t):
        return F.conv2d(t, conv.weight, padding='same', dilation=octave.hh.dilation)

    small = F.avg_pool2d(x, 2, ceil_mode=True)
    want_high = same(octave.hh, x) + F.interpolate(same(octave.lh, small), size=(9, 11))
    torch.testing.assert_close(high, want_high)
    torch.testing.assert_close(low, same(octave.ll, small) + same(octave.hl, small))
    assert list(layer.state_dict()) == [f'octave.{name}.weight' for name in ('hh', 'hl', 'lh', 'll')]


@pytest.mark.parametrize(
    ('padding', 'kernel', 'dilation', 'want'),
    [
        ('same', (3, 5), (1, 2), ((1, 4), None)),
        ('same', (4, 3), (1, 1), ((0, 0), (1, 1, 1, 2))),
        ('same', (2, 2), (2, 2), ((1, 1), None)),
        ('valid', (4, 4), (1, 1), ((0, 0), None)),
        ((2, 1), (3, 3), (1, 1), ((2, 1), None)),
    ],
)
def test_numeric_padding(padding, kernel, dilation, want):
    assert numeric_padding(padding, kernel, (1, 1), dilation) == want
