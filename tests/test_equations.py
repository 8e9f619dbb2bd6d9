"""Eq. 1-9 in one file, against numpy loops that share no code, and the rearranged forms against them."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from helpers import reference
from helpers.paths import ROOT
from mmscconv import equations, identities

DOUBLE = torch.float64
EPS = 1e-5


def arguments(channels=8, shape=(2, 8, 5, 6), dtype=DOUBLE):
    gamma, beta = torch.empty(2, channels, dtype=dtype).uniform_(-0.4, 1.6).unbind()
    return torch.randn(shape, dtype=dtype) + 0.3, gamma.clone(), beta - 0.5


def numpy(*tensors):
    return [t.detach().double().numpy() for t in tensors]


def test_eq_1():
    x, gamma, beta = arguments()
    want = reference.group_norm(x.numpy(), 4, gamma.numpy(), beta.numpy(), EPS)
    torch.testing.assert_close(equations.gn(x, 4, gamma, beta, EPS), torch.from_numpy(want))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_eq_1_to_3_run_in_fp32_at_least(dtype):
    x, gamma, beta = (t.to(dtype) for t in arguments())
    assert equations.gn(x, 4, gamma, beta, EPS).dtype is torch.float32
    assert equations.gamma_weights(gamma, EPS).dtype is torch.float32
    assert equations.sru(x, gamma, beta, 4, EPS, 0.0).dtype is dtype


@pytest.mark.parametrize(
    ('gamma', 'want'),
    [([1.0, 3.0], [0.25, 0.75]), ([-1.0, -3.0], [0.25, 0.75]), ([2.0, -2.0], [2e5, -2e5]), ([0.0, 0.0], [0.0, 0.0])],
    ids=str,
)
def test_eq_2_and_its_guard(gamma, want):
    got = equations.gamma_weights(torch.tensor(gamma, dtype=DOUBLE), EPS)
    torch.testing.assert_close(got, torch.tensor(want, dtype=DOUBLE))
    # Just below zero, the guard keeps the sign.
    assert equations.gamma_weights(torch.tensor([-1e-9]), EPS).item() == pytest.approx(1e-4)


@pytest.mark.parametrize('hard', [False, True], ids=['soft', 'hard'])
def test_eq_3(hard):
    logit = torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE)
    w1, w2 = equations.gate(logit, 0.0, hard)
    low, half = 1 / (1 + math.e), 0.5
    assert w1.tolist() == pytest.approx([0, 0, 1] if hard else [low, half, 1])
    assert w2.tolist() == pytest.approx([1, 1, 0] if hard else [low, half, 0])


@pytest.mark.parametrize('hard', [False, True], ids=['soft', 'hard'])
@pytest.mark.parametrize('threshold', [0.5, 0.45, 0.6])
def test_eq_1_to_4(threshold, hard):
    x, gamma, beta = arguments()
    at = math.log(threshold / (1 - threshold))
    want = torch.from_numpy(reference.sru(*numpy(x), 4, *numpy(gamma, beta), threshold, 'hard' if hard else 'soft'))
    torch.testing.assert_close(equations.sru(x, gamma, beta, 4, EPS, at, hard), want)
    affine = identities.affine(gamma, beta, EPS, x.dtype)
    torch.testing.assert_close(identities.sru(x, *affine, 4, EPS, at, hard), want)
    for one_operator in (False, True):
        halves = identities.sru_halves(x, *affine, 4, EPS, at, hard, one_operator)
        torch.testing.assert_close(torch.cat(halves, dim=1), want)


@pytest.mark.parametrize('hard', [False, True], ids=['soft', 'hard'])
@pytest.mark.parametrize('at', [-math.inf, math.inf])
def test_halves_where_the_gate_is_open_or_shut(at, hard):
    x, gamma, beta = arguments()
    got = identities.sru_halves(x, *identities.affine(gamma, beta, EPS, x.dtype), 4, EPS, at, hard)
    torch.testing.assert_close(torch.cat(got, dim=1), equations.sru(x, gamma, beta, 4, EPS, at, hard))


@pytest.mark.parametrize('mean', [0.0, 3.0, 1000.0, 1e4])
def test_affine_of_channels_is_as_exact_as_the_definition_far_from_zero(mean):
    x, gamma, beta = arguments(16, (2, 16, 28, 28), torch.float32)
    x = x + mean + torch.randn(2, 16, 1, 1)
    affine = identities.affine(gamma, beta, EPS)
    wide = [t.double() for t in affine]
    want = identities.logit(x.double(), *wide, 4, EPS)
    factor, summand = identities.channel_affine(x, *affine, 4, EPS)
    assert factor.shape == summand.shape == (2, 16, 1, 1)
    off = (factor * x + summand - want).abs().max()
    definition = (identities.logit(x, *affine, 4, EPS) - want).abs().max()
    assert off <= 4 * max(definition, torch.finfo(torch.float32).eps * want.abs().max())
    decided = want.abs() > off
    assert decided.float().mean() > 0.95
    assert torch.equal((factor * x + summand > 0)[decided], (want > 0)[decided])


def test_affine_of_channels_without_variance():
    x = torch.full((1, 4, 3, 3), 7.0)
    factor, summand = identities.channel_affine(x, torch.ones(4), torch.arange(4.0), 2, EPS)
    torch.testing.assert_close(factor * x + summand, torch.arange(4.0).view(1, 4, 1, 1).expand_as(x), atol=1e-3, rtol=0)


def test_eq_7_to_9_and_parts():
    first, second, made, low = (
        torch.randn(2, 6, 4, 3),
        torch.randn(2, 6, 4, 3),
        *torch.randn(2, 6, 4, 3).split((4, 2), 1),
    )
    y1, y2 = (first + second).double(), torch.cat((made, low), dim=1).double()
    weights = 1 / (1 + torch.exp(y2.mean((2, 3), keepdim=True) - y1.mean((2, 3), keepdim=True)))
    want = weights * y1 + (1 - weights) * y2
    torch.testing.assert_close(equations.fuse(y1, y2), want)
    torch.testing.assert_close(identities.fuse(first, low, second, made), want.float())
    scale, shift = torch.randn(2, 6).unbind()
    normed = want * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
    torch.testing.assert_close(identities.fuse(first, low, second, made, scale, shift), normed.float())
    torch.testing.assert_close(equations.fuse(y1 + 800, y2)[0], y1[0] + 800)  # no overflow


def test_derivatives_of_both_orders():
    x, gamma, beta = (t.requires_grad_() for t in arguments(4, (2, 4, 3, 2)))
    y1, y2 = (torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    checks = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for check in checks:
        # Away from the step of the gate, which has no derivative.
        assert check(lambda *t: equations.sru(*t, 2, EPS, -0.05), (x, gamma.abs().detach() + 0.2, beta))
        assert check(equations.fuse, (y1, y2))
    assert torch.autograd.gradcheck(
        equations.fuse, (y1, y2), check_forward_ad=True, check_backward_ad=False, check_undefined_grad=False
    )


@pytest.mark.parametrize('size', [(0, 8, 3, 3), (2, 8, 1, 1)], ids=str)
def test_no_and_one_position(size, recwarn):
    x, gamma, beta = arguments(shape=size)
    out = equations.sru(x, gamma, beta, 4, EPS, 0.0)
    assert out.shape == size and out.isfinite().all()
    assert not recwarn.list


@pytest.mark.parametrize('frozen_in_front', [False, True], ids=['first-layer', 'behind-frozen'])
def test_channels_last_input_that_needs_no_gradient(frozen_in_front):
    """Torch 2.11's GroupNorm ends the process there, in its backward pass."""
    code = f"""
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from mmscconv import SCConv, SRU
from mmscconv.legacy import LegacySCConv
x = torch.randn(2, 32, 14, 14).contiguous(memory_format=torch.channels_last)
front = nn.Conv2d(32, 32, 1).requires_grad_(False) if {frozen_in_front} else nn.Identity()
for layer in (SCConv(32, 32, 3, backend='plain'), SRU(32, backend='plain'), SCConv(32, 32, 3), LegacySCConv(32, 32, 3)):
    nn.Sequential(front, layer).to(memory_format=torch.channels_last)(x).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
print('done')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == 'done', (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize(('kernel', 'groups', 'dilation'), [((3, 3), 2, 1), ((5, 3), 1, 2), ((1, 1), 4, 1)], ids=str)
def test_eq_5_as_one_convolution(kernel, groups, dilation):
    x = torch.randn(2, 8, 7, 6, dtype=DOUBLE)
    gwc, pwc1 = torch.randn(12, 8 // groups, *kernel, dtype=DOUBLE), torch.randn(12, 8, 1, 1, dtype=DOUBLE)
    padding = [dilation * (k // 2) for k in kernel]
    want = F.conv2d(x, gwc, None, 1, padding, dilation, groups) + F.conv2d(x, pwc1)
    weight = identities.y1_weight(gwc, pwc1, groups, kernel[0] * kernel[1] // 2)
    torch.testing.assert_close(F.conv2d(x, weight, None, 1, padding, dilation), want)
