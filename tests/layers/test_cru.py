import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from helpers import reference
from mmscconv import CRU
from mmscconv.layers import AlignedAvgPool2d
from mmscconv.ops import fuse


def eq11(c1, c2, alpha, r, g, k):
    """Parameters of CRU as Eq. 11 prints them."""
    return (
        alpha * c1 * alpha * c1 / r
        + k * k * alpha * c1 / (g * r) * c2 / g * g
        + alpha * c1 / r * c2
        + (1 - alpha) * c1 * (1 - alpha) * c1 / r
        + (1 - alpha) * c1 / r * (c2 - (1 - alpha) / r * c1)
    )


@pytest.mark.parametrize(
    ('c1', 'c2', 'alpha', 'r', 'g', 'k'),
    [
        (64, 64, 1 / 2, 2, 2, 3),
        (64, 128, 1 / 2, 2, 2, 3),
        (64, 64, 3 / 4, 2, 2, 3),
        (64, 64, 1 / 8, 2, 2, 3),
        (64, 64, 7 / 8, 2, 2, 3),
        (96, 48, 1 / 2, 4, 4, 5),
        (64, 64, 1 / 2, 1, 1, 1),
    ],
)
def test_parameters_equal_eq11(c1, c2, alpha, r, g, k):
    cru = CRU(c1, c2, k, alpha=alpha, squeeze_ratio=r, groups=g)
    assert sum(p.numel() for p in cru.parameters()) == eq11(c1, c2, alpha, r, g, k)


def test_output_squeeze_and_inner_norm_counts():
    c = 64
    plain = sum(p.numel() for p in CRU(c, low_squeeze='output').parameters())
    assert plain == 2.0 * c * c
    assert sum(p.numel() for p in CRU(c, alpha=0.75, low_squeeze='output').parameters()) == 2.71875 * c * c
    # complexity of the printed tables: 6.25 C more with Eq. 6's X_low, 6.75 C with C2/r.
    for low_squeeze, extra in (('input', 6.25), ('output', 6.75)):
        counts = [
            sum(p.numel() for p in CRU(c, low_squeeze=low_squeeze, inner_norm=inner).parameters())
            for inner in (False, True)
        ]
        assert counts[1] - counts[0] == extra * c


def test_by_hand():
    # One channel a branch, r = g = 1; input 1 (upper) and 2 (lower) on a 2x2 image.
    cru = CRU(2, 1, squeeze_ratio=1, groups=1).double()
    assert cru.pwc2 is None
    with torch.no_grad():
        cru.squeeze_up.weight.fill_(3.0)  # X_up = 3
        cru.gwc.weight.fill_(1.0)  # every 3x3 window sees the whole image: 12
        cru.pwc1.weight.fill_(0.5)  # 1.5, so Y1 = 13.5
        cru.squeeze_low.weight.fill_(6.0)  # Y2 = X_low = 12
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    beta1 = 1 / (1 + np.exp(12 - 13.5))
    want = torch.full((1, 1, 2, 2), beta1 * 13.5 + (1 - beta1) * 12, dtype=torch.float64)
    torch.testing.assert_close(cru(x), want, rtol=0, atol=1e-12)


CASES = [
    {'stride': 1, 'padding': 1},
    {'stride': 2, 'padding': 1},
    {'stride': 2, 'padding': 0},
    {'stride': 3, 'padding': 1},
    {'stride': (1, 2), 'padding': (2, 1)},
    {'stride': 2, 'padding': 2, 'dilation': 2},
    {'stride': 2, 'padding': 3, 'kernel_size': 5},
    {'stride': 2, 'padding': 0, 'kernel_size': 2},
    {'stride': 1, 'padding': 4, 'kernel_size': 3},
    {'alpha': 0.75, 'low_squeeze': 'output'},
    {'out_channels': 4},
    {'out_channels': 2},
    {'out_channels': 12, 'groups': 4, 'squeeze_ratio': 1},
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: '-'.join(f'{k}={v}' for k, v in case.items()))
@pytest.mark.parametrize('size', [(6, 8), (7, 5)], ids=['even', 'odd'])
def test_equals_reference(case, size):
    cru = CRU(16, **case).double()
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    want = reference.cru(
        x.numpy(), reference.weights_of(cru), cru.channels.up, cru.stride, cru.padding, cru.dilation, cru.gwc.groups
    )
    torch.testing.assert_close(cru(x), torch.from_numpy(want), rtol=1e-10, atol=1e-12)


def test_branch_weights_sum_to_one_per_channel():
    y1, y2 = torch.randn(2, 2, 6, 4, 4, dtype=torch.float64) * 3
    torch.testing.assert_close(fuse(y1, y1), y1)
    ones = torch.ones_like(y1)
    beta1 = (fuse(y1, y1 + 1) - y1).mean((2, 3))
    torch.testing.assert_close(beta1, torch.full((2, 6), 1 / (1 + np.exp(-1)), dtype=torch.float64))
    # A branch that is far above in one channel alone wins there and nowhere else.
    high = y2.clone()
    high[:, 2] += 500
    torch.testing.assert_close(fuse(high, ones)[:, 2], high[:, 2])
    torch.testing.assert_close(fuse(high, y1)[:, 3], fuse(y2, y1)[:, 3])


@pytest.mark.parametrize(('alpha', 'gone', 'left'), [(0, 'up', 'low'), (1, 'low', 'up')])
def test_one_branch(alpha, gone, left):
    cru = CRU(8, alpha=alpha, stride=2, inner_norm=True)
    assert getattr(cru, f'squeeze_{gone}') is None and getattr(cru, f'norm_{gone}') is None
    x = torch.randn(2, 8, 7, 7)
    cru.eval()
    branch = 0 if left == 'up' else 1
    squeezed = getattr(cru, f'norm_{left}')(cru.squeeze(x)[branch])
    assert torch.equal(cru(x), getattr(cru, f'transform_{left}')(squeezed)[branch])
    cru.train()(x).sum().backward()
    assert all(p.grad is not None for p in cru.parameters())


@pytest.mark.parametrize('alpha', [0.1, 0.29, 1 / 3, 0.5, 0.7, 0.9])
def test_any_alpha(alpha):
    cru = CRU(100, alpha=alpha, groups=1)
    assert cru.channels.up == round(alpha * 100 - 0.01)
    assert cru(torch.randn(1, 100, 3, 3)).shape == (1, 100, 3, 3)


def test_inner_norm_is_where_it_is_named():
    cru = CRU(16, inner_norm=True).eval()
    bare = CRU(16)
    bare.load_state_dict(cru.state_dict(), strict=False)
    with torch.no_grad():
        for conv in (cru.squeeze_up, cru.squeeze_low, cru.pwc2):
            conv.bias.zero_()
        for norm in (cru.norm_up, cru.norm_low, cru.norm1, cru.norm2):
            norm.running_var.fill_(1 - norm.eps)
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(cru(x), bare(x))  # BN at its initial statistics is the identity
    with torch.no_grad():
        cru.norm1.weight.mul_(2)
        cru.norm_low.weight.mul_(3)
        up, low = x.chunk(2, dim=1)
        want = fuse(
            2 * sum(bare.transform_up(bare.squeeze_up(up))), 3 * torch.cat(bare.transform_low(bare.squeeze_low(low)), 1)
        )
    torch.testing.assert_close(cru(x), want)


GRID = list(itertools.product((1, 2, 3, 4, 5, 7), (1, 2, 3, 4), (0, 1, 2, 3), (1, 2, 3)))


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 8), (13, 4)], ids=str)
def test_size_is_conv2d_s(size):
    x = torch.zeros(1, 1, *size)
    for kernel, stride, padding, dilation in GRID:
        pool = AlignedAvgPool2d(kernel, stride, padding, dilation)
        if dilation * (kernel - 1) + 1 > min(size) + 2 * padding:
            with pytest.raises(ValueError, match='larger than the input'):
                pool(x)
        else:
            conv = nn.functional.conv2d(x, torch.zeros(1, 1, kernel, kernel), None, stride, padding, dilation)
            assert pool(x).shape == conv.shape, (kernel, stride, padding, dilation)


def test_stride_1_samples_the_window_s_centre():
    # At stride 1 a 1x1 position is the centre tap of its window, zeros outside included.
    x = torch.randn(1, 1, 9, 6)
    for kernel, padding, dilation in itertools.product((1, 3, 5), (0, 1, 2, 5, 'same', 'valid'), (1, 2)):
        if padding in (0, 1, 'valid') and kernel == 5 and dilation == 2:
            continue  # larger than the image
        tap = torch.zeros(1, 1, kernel, kernel)
        tap[..., kernel // 2, kernel // 2] = 1
        want = nn.functional.conv2d(x, tap, None, 1, padding, dilation)
        assert torch.equal(AlignedAvgPool2d(kernel, 1, padding, dilation)(x), want)


def test_cut_windows_in_bf16_are_rounded_twice_at_most():
    """The mean of a window and its quotient by the share inside; the share itself, 2/3 here, is exact enough."""
    pool = AlignedAvgPool2d(3, 3, 1)
    x = torch.rand(8, 32, 7, 8).bfloat16()
    y = pool(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.double(), pool(x.double()), rtol=2 * 2**-8, atol=0)


def test_windows_are_centred():
    # On a ramp, the pooled value is the pooling window's middle: at most half a pixel off the centre.
    ramp = torch.arange(60.0).expand(1, 1, 60, 60)
    for kernel, stride, padding, dilation in GRID:
        pooled = AlignedAvgPool2d(kernel, stride, padding, dilation)(ramp)[0, 0]
        pooled = pooled[len(pooled) // 2]
        centres = torch.arange(len(pooled)) * stride - padding + dilation * (kernel - 1) / 2
        inner = (centres > stride) & (centres < 59 - stride)
        assert (pooled - centres)[inner].abs().max() <= 0.5, (kernel, stride, padding, dilation)


def test_gradcheck():
    cru = CRU(8, 6, stride=2, alpha=0.5).double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    params = dict(cru.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(cru, dict(zip(params, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *params.values()))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'in_channels': 12}, r'u = 3 .*groups = 2.*groups=1'),
        ({'in_channels': 64, 'alpha': 0.01}, r'u = .* = 0 channels.*alpha=1/16'),
        ({'in_channels': 64, 'alpha': 63 / 64, 'groups': 1}, r'lower branch has 1 channels, 0 after.*alpha=31/32'),
        ({'in_channels': 64, 'out_channels': 33}, r'out_channels = 33.*groups=1'),
        ({'in_channels': 2}, r'u = .* = 0 channels.*in_channels=8'),
        ({'in_channels': 8, 'alpha': 1.5}, 'alpha=1.5'),
        ({'in_channels': 8, 'alpha': float('nan')}, 'alpha=nan'),
        ({'in_channels': 8, 'squeeze_ratio': 0}, 'squeeze_ratio=0'),
        ({'in_channels': 0}, 'in_channels=0'),
        ({'in_channels': 8.0}, 'in_channels=8.0'),
        ({'in_channels': 8, 'groups': '2'}, "groups='2'"),
        ({'in_channels': 8, 'alpha': '0.5'}, "alpha='0.5'"),
        ({'in_channels': 8, 'squeeze_ratio': 2**31}, 'squeeze_ratio must be an integer from 1 to 2147483647'),
        ({'in_channels': 8, 'kernel_size': 1.5}, 'kernel_size must be .* got 1.5'),
        # Searching all the smaller values for an advice would take hours.
        ({'in_channels': 64, 'groups': 2**30}, r'Nearest settings that work: groups=16'),
        ({'in_channels': 2**30, 'out_channels': 7}, r'out_channels = 7 .* groups=1'),
        ({'in_channels': 8, 'low_squeeze': 'both'}, "low_squeeze='both'"),
        ({'in_channels': 8, 'kernel_size': 0}, 'kernel_size must be'),
        ({'in_channels': 8, 'stride': (1, 0)}, 'stride must be'),
        ({'in_channels': 8, 'padding': -1}, 'padding must be'),
        ({'in_channels': 8, 'padding': 'sane'}, "'same' or 'valid', got 'sane'"),
        ({'in_channels': 8, 'padding': 'same', 'stride': 2}, "padding='same' needs stride 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CRU(**kwargs)


def test_advice_works():
    tried = 0
    for in_channels, out_channels, groups in itertools.product((2, 6, 12, 30), (1, 7, 30), (2, 3, 4)):
        try:
            CRU(in_channels, out_channels, groups=groups)
        except ValueError as error:
            advice = re.findall(r'(groups|squeeze_ratio|alpha|in_channels)=([\d/]+)(?=,? or |\. Given)', str(error))
            for name, value in advice:
                value = float(Fraction(value)) if name == 'alpha' else int(value)
                CRU(**{'in_channels': in_channels, 'out_channels': out_channels, 'groups': groups, name: value})
                tried += 1
    assert tried > 20
