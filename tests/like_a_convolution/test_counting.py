"""Parameters and multiply-adds by the tools that people use, against the geometry of Eq. 5, 6 and 11."""

import contextlib
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from like_a_convolution.columns import CHANNELS, RIVALS, SIZE, Column, build, columns, dealt, every, plain

C, POSITIONS = CHANNELS, SIZE[0] * SIZE[1]
HALF, SQUEEZED = C // 2, C // 4  # alpha*C1, alpha*C1/r


def cru(out=POSITIONS, up=HALF, squeezed_up=SQUEEZED, low=C - HALF, squeezed_low=SQUEEZED, groups=2, window=9):
    """(weights, multiply-adds) of the CRU's convolutions for one image, from the channels of each."""
    parts = [
        (up * squeezed_up, POSITIONS),  # upper squeeze, at the input's size
        (window * squeezed_up * C // groups, out),  # GWC
        (squeezed_up * C, out),  # PWC1
        (low * squeezed_low, out),  # lower squeeze, on the pooled input
        (squeezed_low * (C - squeezed_low), out),  # PWC2
    ]
    return sum(w for w, _ in parts), sum(w * size for w, size in parts)


def alone(weights, size=POSITIONS):
    return weights, weights * size


HALVED = 4 * 3
BY_HAND = {
    'Conv2d': alone(9 * C * C),
    'SRU': (0, 0),
    'CRU': cru(),
    'S+C': cru(),
    'C+S': cru(),
    'C&S': cru(),
    'C': cru(),
    'S': alone(9 * C * C),
    'stride 2': cru(out=HALVED),
    'alpha 3/4': cru(up=12, squeezed_up=6, low=4, squeezed_low=2),
    '4 groups': cru(groups=4),
    'inner_norm': cru(),
    'deploy': cru(),
    'Legacy': cru(),
    'SPConv': alone(9 * HALF * C // 2 + HALF * C + HALF * C),
    'TiedConv': (9 * C * C // 4, 9 * C * C // 2 * POSITIONS),
    'GhostConv': alone(C * HALF + 9 * HALF),
    # Half of the channels at a quarter of the positions, rounded up.
    'OctConv': (9 * C * C, 9 * HALF * HALF * (POSITIONS + 3 * HALVED)),
    'PFLayer': (0, 0),
    'VersatileConv': (9 * C * HALF, 10 * C * HALF * POSITIONS),
}
NAMES = [*BY_HAND, 'SlimConv']


def test_eq_11():
    """1.8125 C² weights at the defaults."""
    assert cru()[0] == 1.8125 * C * C


def expected(column, layer):
    """(all parameters, the convolutions' multiply-adds)."""
    if column.layer == 'SlimConv':  # by its own modules: attention 1x1, upper k x k, lower 1x1 and k x k
        hidden = layer.attention[1].out_channels
        macs = 2 * C * hidden + (9 * HALF * HALF + HALF * SQUEEZED + 9 * SQUEEZED * HALF) * POSITIONS
    else:
        macs = BY_HAND[column.layer][1]
    return sum(p.numel() for p in layer.parameters()), macs


COLUMNS = [c for c in every(NAMES) if not c.training and c.road in ('default', 'plain')]


def test_weights_by_hand():
    for name, (weights, _) in BY_HAND.items():
        layer = build(Column(name, training=not name.startswith('deploy'))).truth
        assert sum(w.numel() for w in layer.parameters() if w.dim() == 4) == weights, name


@columns(COLUMNS)
def test_flop_counter(column):
    """torch's own counter: 2 FLOPs a multiply-add, in inference."""
    layer, _, x = build(column)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 2 * expected(column, layer)[1]


def flops_of_a_step(layer, x):
    with FlopCounterMode(display=False) as counter:
        layer(x.requires_grad_()).sum().backward()
    return counter.get_total_flops()


@columns(every(NAMES, road='default', training=True) + every(('S+C',), road='recompute'))
def test_flop_counter_of_a_training_step(column):
    """As many as plain; a recomputed forward may come once more."""
    layer, truth, x = build(column)
    got, want = flops_of_a_step(layer, x), flops_of_a_step(truth, x.double().contiguous())
    once = 4 * expected(column, layer)[1]
    assert want >= 2 * once
    most = want + once if column.road == 'recompute' else want
    # torch counts backward of a grouped convolution above its work: two squeezes in one such count a little more.
    assert want <= got <= 1.05 * most


def flops_of_backward(layer, x):
    y = layer(x.requires_grad_()).sum()
    with FlopCounterMode(display=False) as counter:
        y.backward()
    return counter.get_total_flops()


@columns(every(NAMES, road='default', training=True) + every(('S+C', 'inner_norm'), road='recompute', training=True))
def test_flop_counter_of_backward_alone(column):
    """As many as plain, and a recomputed forward besides; two, if the default road recomputes within a recomputation.

    torch counts the gradient of a grouped weight as that of a dense one: two squeezes in one convolution count more.
    """
    layer, truth, x = build(column)
    got, want = flops_of_backward(layer, x), flops_of_backward(truth, x.double().contiguous())
    once = 4 * expected(column, layer)[1]
    assert want >= once
    again = 2 if column.road == 'recompute' else 0 if column.channels_last else 1
    assert want <= got <= 1.15 * (want + again * once)


@columns([c for c in COLUMNS if c.road == 'default'])
def test_flop_counter_by_module(column):
    """Its table names the layer, and the sum of the parts is the whole."""
    layer, _, x = build(column)
    net = nn.Sequential(nn.ReLU(), layer)
    with torch.no_grad(), FlopCounterMode(net, display=False) as counter:
        net(x)
    counts = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    macs = expected(column, layer)[1]
    assert counts.get('Sequential.1', 0) == counts.get('Global', 0) == 4 * macs  # a layer without any is not listed


@columns(COLUMNS)
def test_fvcore(column):
    nn_count = pytest.importorskip('fvcore.nn', reason='fvcore is not installed')
    layer, _, x = build(column)
    parameters, macs = expected(column, layer)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        counted = nn_count.FlopCountAnalysis(layer, x).unsupported_ops_warnings(False).by_operator().get('conv', 0)
    assert counted == 2 * macs
    assert nn_count.parameter_count(layer)[''] == parameters


# By rules for modules: TiedConv has a weight of its own, and VersatileConv's secondary filters are no modules.
UNKNOWN_TO_RULES = ('TiedConv', 'VersatileConv')


@columns([c for c in COLUMNS if (not c.channels_last or c.road == 'default') and c.layer not in UNKNOWN_TO_RULES])
def test_thop(column):
    thop = pytest.importorskip('thop', reason='thop is not installed')
    layer, _, x = build(column)
    nothing = lambda m, x, y: None  # noqa: E731, norms, poolings and activations are not what is counted here
    others = {type(m): nothing for m in layer.modules() if not isinstance(m, nn.Conv2d) and not list(m.children())}
    # It counts what the root's children do.
    macs, parameters = thop.profile(nn.Sequential(layer), (x,), custom_ops=others, verbose=False)
    assert macs == 2 * expected(column, layer)[1]
    if not column.deployed:  # which holds weights that it merged beside the merged ones
        assert parameters == expected(column, layer)[0]


@dealt(
    'backend',
    ['pytorch', 'aten'],
    [c for c in COLUMNS if not c.channels_last and c.road == 'default'],
    parts=1,
    without=lambda backend, c: c.layer in UNKNOWN_TO_RULES and backend == 'pytorch',
)
def test_ptflops(column, backend):
    """The convolutions' share of what it counts, and every parameter."""
    ptflops = pytest.importorskip('ptflops', reason='ptflops is not installed')
    layer, _, _ = build(column)
    parameters, macs = expected(column, layer)
    others = [
        m for m in layer.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.ReLU, nn.AdaptiveAvgPool2d))
    ]
    options = dict(ignore_modules=list({type(m) for m in others})) if backend == 'pytorch' else {}
    with contextlib.redirect_stdout(io.StringIO()):
        counted, found = ptflops.get_model_complexity_info(
            layer, (C, *SIZE), as_strings=False, print_per_layer_stat=False, verbose=False, backend=backend, **options
        )
        # The same tool on the plain road: what it counts besides convolutions is not for us to say.
        plain_counted, _ = ptflops.get_model_complexity_info(
            plain(layer, torch.float32), (C, *SIZE), as_strings=False, print_per_layer_stat=False, verbose=False,
            backend=backend, **options,
        )  # fmt: skip
    if not column.deployed:
        assert found == parameters
    assert counted == plain_counted
    assert macs <= counted <= macs + 60 * C * POSITIONS


@columns(COLUMNS)
def test_torchinfo(column):
    torchinfo = pytest.importorskip('torchinfo', reason='torchinfo is not installed')
    layer, _, x = build(column)
    parameters, macs = expected(column, layer)
    found = torchinfo.summary(layer, input_data=[x], verbose=0, mode='eval')
    if not column.deployed:
        assert found.total_params == parameters
    convs = [info for info in found.summary_list if isinstance(info.module, nn.Conv2d)]
    if column.layer not in UNKNOWN_TO_RULES:
        # A bias counts as a multiply-add there; its positions are those of the output but for the upper squeeze's.
        biases = sum(
            i.module.bias.numel() * i.output_size[2] * i.output_size[3] for i in convs if i.module.bias is not None
        )
        assert sum(info.total_mult_adds if hasattr(info, 'total_mult_adds') else info.macs for info in convs) == 2 * (
            macs + biases
        )


@columns([c for c in COLUMNS if not c.channels_last])
def test_mmengine(column):
    analysis = pytest.importorskip('mmengine.analysis')
    layer, _, x = build(column)
    counted = analysis.FlopAnalyzer(layer, x).by_operator().get('conv', 0)
    assert counted == 2 * expected(column, layer)[1]
    assert analysis.parameter_count(layer)[''] == expected(column, layer)[0]


def test_every_rival_is_counted():
    assert set(RIVALS) <= {*NAMES}
