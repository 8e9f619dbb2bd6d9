"""Random settings of SRU, CRU and SCConv: how they are drawn, whether they must build, and what must come out.

Strategies draw from short lists, so that the same examples come on every machine.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from helpers import reference
from mmscconv import CRU, SRU, SCConv

CHANNELS = [8, 16, 24, 8, 16, 24, 16, 24, 12, 12, 20, 6, 4, 2, 3]
SRU_VALUES = {
    'num_groups': [1, 2, 3, 4, 16, 16, 1000],
    'threshold': [0.5, 0.5, 0.45, 0.6, 0.499, 0, 1, -1.0, 3, math.inf],
    'gate': ['soft', 'hard'],
}
WINDOW_VALUES = {
    'kernel_size': [3, 3, 3, 1, 1, 2, 5, (1, 3), (3, 2), [3, 3], 9],
    'stride': [1, 1, 1, 2, 2, 3, (1, 2), (3, 1), 7],
    'padding': [1, 1, 1, 2, 4, 0, (0, 1), (2, 1), 'same', 'same', 'valid'],
    'dilation': [*[1] * 8, 2, (1, 2), 4],
}
CRU_VALUES = {
    'alpha': [*[0.5] * 6, 0.25, 0.75, 0, 1, 1 / 3, 0.29, 2 / 3, 0.9, 0.04],
    'squeeze_ratio': [1, 1, 1, 1, 2, 2, 2, 3, 4],
    'groups': [*[1] * 6, 2, 2, 2, 3, 4],
    'low_squeeze': ['input', 'output'],
    'inner_norm': [False, True],
}
SCCONV_VALUES = {
    'arrangement': ['S+C', 'S+C', 'S+C', 'C+S', 'C&S', 'S', 'C'],
    'bias': [False, True],
    'recompute': [False, True],
}
# Values with which no layer can be built, whatever else is given.
BAD_INTEGER = [0, -1, -(2**40), 2.0, 1.5, '2', None, math.nan, 2**31, 10**30, (), [1]]
BAD_PAIR = [0, -1, (1, 0), (1, -1), 1.5, (1, 2.0), '3', math.nan, 2**31, (1, 10**30), (1, 2, 3), ()]
BAD = {
    **dict.fromkeys(('channels', 'in_channels', 'num_groups', 'squeeze_ratio', 'groups', 'gwc_groups'), BAD_INTEGER),
    'out_channels': [value for value in BAD_INTEGER if value is not None],
    **dict.fromkeys(('kernel_size', 'stride', 'dilation'), BAD_PAIR),
    'padding': [-1, (1, -1), 1.5, 'sane', '', 2**31, (1, 2, 3), math.nan],
    'alpha': [-0.1, 1.1, math.nan, math.inf, '0.5', None, 10**400, (0.5,)],
    'threshold': [math.nan, '0.5', None, [0.5]],
    'eps': [0, 0.0, -1e-5, math.nan, math.inf, '1e-5', None, 10**400],
    'gate': ['medium', '', None, 0, ['soft']],
    'low_squeeze': ['both', None, 1, ('input',)],
    'arrangement': ['S-C', '', None, 2, ['S']],
    'backend': ['cuda', '', 1, ['plain']],
}
BAD_INPUTS = ('input channels', 'input axes', 'input size', 'input dtype')
# Settings of a unit that these arrangements leave out: nobody looks at them.
UNUSED = {'C': SRU_VALUES.keys(), 'S': {*CRU_VALUES, 'gwc_groups'} - {'groups'}}


@dataclass
class Case:
    """A layer's class and arguments, its input, and the one thing that is wrong with them on purpose, if any."""

    kind: type[nn.Module]
    settings: dict
    shape: tuple[int, ...]
    dtype: torch.dtype
    seed: int
    spread: float
    mixed_gammas: bool
    deploy: bool
    bad: str | None

    @property
    def arrangement(self):
        return self.settings.get('arrangement', 'S' if self.kind is SRU else 'C')


@st.composite
def cases(draw):
    def one(options):
        return draw(st.sampled_from(options))

    def values(table):
        return {name: one(options) for name, options in table.items()}

    kind, channels = one([SRU, CRU, SCConv, SCConv]), one(CHANNELS)
    if kind is SRU:
        settings = {'channels': channels, **values(SRU_VALUES), 'eps': one([1e-5, 1e-3, 0.1, 1, 10])}
    else:
        settings = {'in_channels': channels, 'out_channels': one([one(CHANNELS), channels]), **values(WINDOW_VALUES)}
        settings.update(values(CRU_VALUES))
        if settings['padding'] == 'same':
            settings['stride'] = one([1] * 7 + [2])
    if kind is CRU:
        settings['out_channels'] = one([settings['out_channels'], None])
        settings['padding'] = one([settings['padding'], None])
    if kind is SCConv:
        settings.update(values(SRU_VALUES), **values(SCCONV_VALUES), gwc_groups=settings.pop('groups'))
    settings['backend'] = one([None, 'plain', 'native'])
    dtype = torch.float32 if settings['backend'] == 'native' else torch.float64
    size = one([4, 5, 6, 3, 2, 6, 1]), one([5, 4, 6, 3, 2, 7, 1])
    shape = one([(2, channels, *size), (2, channels, *size), (channels, *size), (0, channels, *size)])
    bad = None
    if one([True] + [False] * 5):
        bad = one([*(name for name in settings if name in BAD), *(['groups'] if kind is SCConv else []), *BAD_INPUTS])
        if bad in BAD:
            settings[bad] = one(BAD[bad])
        elif bad == 'input channels':
            shape = (*shape[:-3], channels + 1, *size)
        elif bad == 'input axes':
            shape = one([(channels,), (channels, *size[:1]), (1, 2, channels, *size), ()])
        elif bad == 'input size':
            shape = (*shape[:-2], *one([(0, size[1]), (size[0], 0)]))
        else:
            dtype = one([torch.int64, torch.bool])
    return Case(
        kind, settings, shape, dtype, one(range(100)), one([0.1, 1.0, 5.0]), one([False, True]), one([False, True]), bad
    )


def zeros_around(padding, kernel, dilation):
    """Zeros (before, after) of each axis that ``padding`` stands for."""
    if padding == 'valid':
        return (0, 0), (0, 0)
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if padding == 'same':
        return tuple((t // 2, t - t // 2) for t in totals)
    if padding is None:  # CRU's default
        return tuple((t // 2, t // 2) for t in totals)
    return tuple((p, p) for p in pair(padding))


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def window_of(settings):
    """(kernel, stride, zeros around, dilation), each per axis."""
    kernel, stride, dilation = (pair(settings[name]) for name in ('kernel_size', 'stride', 'dilation'))
    return kernel, stride, zeros_around(settings['padding'], kernel, dilation), dilation


def branch_channels(settings):
    """(upper, squeezed upper, lower, squeezed lower, C2, g) of CRU."""
    c1, ratio = settings['in_channels'], settings['squeeze_ratio']
    c2 = settings['out_channels'] or c1
    up = math.floor(settings['alpha'] * c1 + 1e-6)
    squeezed_low = (c1 - up if settings['low_squeeze'] == 'input' else c2) // ratio
    return up, up // ratio, c1 - up, min(squeezed_low, c2), c2, settings.get('gwc_groups') or settings['groups']


def impossible(case):
    """True if the case must be refused."""
    s, arrangement = case.settings, case.arrangement
    ignored = UNUSED.get(arrangement, ()) if case.kind is SCConv and case.bad != 'arrangement' else ()
    if case.bad and case.bad not in ignored:
        return True
    if 'S' in arrangement:
        halved = s.get('channels') or s['out_channels' if arrangement == 'C+S' else 'in_channels']
        if halved % 2:
            return True
    if case.kind is SRU:
        return False
    kernel, stride, zeros, dilation = window_of(s)
    if s['padding'] == 'same' and stride != (1, 1):
        return True
    if arrangement == 'C&S' and s['in_channels'] != s['out_channels']:
        return True
    if 'C' in arrangement:
        _, u, low, squeezed_low, c2, groups = branch_channels(s)
        if s['alpha'] > 0 and (u < 1 or u % groups or c2 % groups):
            return True
        if s['alpha'] < 1 and (low < 1 or squeezed_low < 1):
            return True
    return any(
        d * (k - 1) >= length + sum(z) for length, k, z, d in zip(case.shape[-2:], kernel, zeros, dilation, strict=True)
    )


def randomize(layer, mixed_gammas):
    """Give norms and biases values that training might."""
    for m in layer.modules():
        if isinstance(m, nn.GroupNorm):
            nn.init.uniform_(m.weight, -0.5 if mixed_gammas else 0.2, 2.0)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.3, 2.0)
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.3, 2.0)
    for name, p in layer.named_parameters():
        if name.endswith('bias'):
            nn.init.uniform_(p, -0.5, 0.5)


def array(tensor):
    return tensor.detach().double().numpy()


class Expected:
    """The right output of ``layer`` for arrays (N, C, H, W), by the reference, from the case's settings and weights.

    ``nearest`` is the least distance of a gate's argument from its threshold, ``largest``
    the largest argument: nearer than rounding, either side is right.
    """

    def __init__(self, case, layer):
        self.case, self.layer = case, layer
        self.nearest, self.largest = math.inf, 0.0

    def __call__(self, x):
        kind, layer, arrangement = self.case.kind, self.layer, self.case.arrangement
        if kind is SRU:
            return self.sru(layer, x)
        if kind is CRU:
            return self.cru(layer, x)
        kernel, *window = window_of(self.case.settings)
        if arrangement == 'S+C':
            y = self.cru(layer.cru, self.sru(layer.sru, x))
        elif arrangement == 'C+S':
            y = self.sru(layer.sru, self.cru(layer.cru, x))
        elif arrangement == 'C&S':
            y = self.cru(layer.cru, x)
            y = y + reference.centred_mean(self.sru(layer.sru, x), y.shape[2:], kernel, *window)
        elif arrangement == 'S':
            y = reference.conv2d(self.sru(layer.sru, x), array(layer.conv.weight), *window)
        else:
            y = self.cru(layer.cru, x)
        return y if layer.bias is None else y + array(layer.bias)[:, None, None]

    def sru(self, sru, x):
        s = self.case.settings
        groups = math.gcd(s['num_groups'], x.shape[1])
        norm = (groups, array(sru.gn.weight), array(sru.gn.bias))
        eps, t = s.get('eps', 1e-5), s['threshold']
        with np.errstate(over='ignore', divide='ignore'):
            w = reference.sru_weights(x, *norm, eps)
            logit = np.log(w) - np.log1p(-w)
        if 0 < t < 1 and x.size:
            self.nearest = min(self.nearest, np.abs(logit - math.log(t / (1 - t))).min())
        self.largest = max(self.largest, np.abs(logit).max(initial=0))
        with np.errstate(over='ignore'):
            return reference.sru(x, *norm, t, s['gate'], eps)

    def cru(self, cru, x):
        s = self.case.settings
        kernel, *window = window_of(s)
        up, u, low, squeezed_low, c2, groups = branch_channels(s)
        weights = {'kernel_size': kernel}
        shapes = {'squeeze_up': (u, up, 1, 1), 'gwc': (c2, u // groups, *kernel), 'pwc1': (c2, u, 1, 1)}
        if s['alpha'] == 0:
            shapes = {}
        if s['alpha'] < 1:
            shapes['squeeze_low'] = (squeezed_low, low, 1, 1)
            if squeezed_low < c2:
                shapes['pwc2'] = (c2 - squeezed_low, squeezed_low, 1, 1)
        convs = {name for name, m in cru.named_children() if isinstance(m, nn.Conv2d)}
        assert convs == set(shapes)
        for name, shape in shapes.items():
            conv = getattr(cru, name)
            assert tuple(conv.weight.shape) == shape
            assert (conv.bias is not None) == (s['inner_norm'] and name not in ('gwc', 'pwc1'))
            weights[name] = array(conv.weight) if conv.bias is None else (array(conv.weight), array(conv.bias))
        for name, m in cru.named_children():
            if isinstance(m, nn.BatchNorm2d):
                weights[name] = (*map(array, (m.running_mean, m.running_var, m.weight, m.bias)), m.eps)
        assert len(weights) - 1 - len(shapes) == (2 * ((s['alpha'] > 0) + (s['alpha'] < 1)) if s['inner_norm'] else 0)
        return reference.cru(x, weights, up, *window, groups)
