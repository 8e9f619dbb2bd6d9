"""The kernels of SRU and their backward, native and Triton's, against the equations in float64."""

import pytest
import torch

from helpers import reference
from helpers.kernels import LAYOUTS, device_of, doubled, make, tolerance
from mmscconv.identities import logit
from mmscconv.identities import sru as sru_plain
from mmscconv.ops import sru

pytestmark = pytest.mark.usefixtures('poisoned')

EPS = 1e-5
# (N, C, H, W) and groups.
CASES = [
    ((5, 6, 5, 7), 3),  # the middle group straddles the halves
    ((1, 2, 1, 1), 1),
    ((2, 8, 1, 1), 8),  # nothing varies
    ((2, 8, 3, 5), 8),
    ((1, 14, 11, 13), 7),
    ((1, 96, 7, 9), 2),
    ((1, 6, 23, 29), 1),  # several blocks of positions
    ((1, 300, 2, 3), 4),  # several blocks of channels
    ((1, 32, 5, 8), 4),  # aligned
]


def settled(backend, shape, groups, threshold, layout='nchw', dtype=torch.float32, margin=1e-5, **kwargs):
    """Random arguments that no rounding of fp32 carries over the threshold."""
    while True:
        x = make(backend, shape, layout, dtype, **kwargs).requires_grad_()
        scale, shift = (
            (torch.empty(2, shape[1], device=device_of(backend)).uniform_(-1.5, 1.5) + 0.1).requires_grad_().unbind()
        )
        z = logit(x.double(), scale.double(), shift.double(), groups, EPS)
        if not ((z - threshold).abs() < margin).any():
            return x, scale.detach().requires_grad_(), shift.detach().requires_grad_()


def check(backend, shape, groups, threshold=-0.2, hard=False, grad_layout='nchw', scale=1.0, **kwargs):
    arguments = settled(backend, shape, groups, threshold, **kwargs)
    x = arguments[0]
    out = sru(*arguments, groups, EPS, threshold, hard, backend=backend)
    upstream = make(backend, shape, grad_layout, x.dtype, mean=0.1)
    leaves = doubled(*arguments)
    want = sru_plain(*leaves, groups, EPS, threshold, hard)
    assert out.dtype == x.dtype and out.shape == x.shape
    torch.testing.assert_close(out.double(), want, **tolerance(x.dtype, scale))
    got_grads = torch.autograd.grad(out, arguments, upstream)
    want_grads = torch.autograd.grad(want, leaves, upstream.double(), allow_unused=True, materialize_grads=True)
    for got, expected in zip(got_grads, want_grads, strict=True):
        # Sums over all positions cancel.
        size = 1.0 if got.dim() == 4 else max(1.0, x.numel() / shape[1] / 10)
        torch.testing.assert_close(got.double(), expected, **tolerance(got.dtype, scale * size))


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
@pytest.mark.parametrize(('shape', 'groups'), CASES, ids=str)
def test_sizes(backend, shape, groups, layout):
    # Where a group has one value, its rstd is 1 / sqrt(eps), and what that multiplies cancels.
    check(backend, shape, groups, layout=layout, grad_layout=layout, scale=20.0 if groups == shape[1] else 1.0)


@pytest.mark.parametrize(('shape', 'groups'), [((1, 6, 37, 29), 1), ((3, 34, 9, 11), 2)], ids=str)
def test_full_tiles(backend, shape, groups, full_tiles):
    check(backend, shape, groups, layout='channels_last', grad_layout='channels_last')
    check(backend, shape, groups)


@pytest.mark.parametrize('hard', [False, True], ids=['soft', 'hard'])
@pytest.mark.parametrize('threshold', [0.0, -0.2, 0.6, float('-inf'), float('inf')])
def test_gates(backend, threshold, hard):
    check(backend, (2, 6, 5, 3), 3, threshold, hard, layout='channels_last')


@pytest.mark.parametrize('layout', LAYOUTS[2:])
def test_layouts(backend, layout):
    check(backend, (2, 6, 5, 4), 2, layout=layout, grad_layout='expanded')
    check(backend, (2, 4, 3, 4), 1, grad_layout=layout)
    check(backend, (2, 4, 3, 4), 1, layout='channels_last', grad_layout=layout)


@pytest.mark.parametrize(('dtype', 'layout'), [(torch.bfloat16, 'channels_last'), (torch.float16, 'nchw')], ids=str)
@pytest.mark.parametrize('hard', [False, True], ids=['soft', 'hard'])
def test_low_precision(backend, dtype, layout, hard):
    check(backend, (2, 6, 5, 7), 3, hard=hard, layout=layout, dtype=dtype)


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
def test_large_mean(backend, layout):
    # One ulp of the mean is 6e-5.
    check(backend, (1, 6, 17, 23), 3, layout=layout, mean=1000.0, margin=5e-4, scale=2000.0)
    x, scale, shift = settled(backend, (1, 6, 17, 23), 3, 0.0, layout, mean=1000.0)
    _, mean, rstd = torch.ops.mmscconv.sru(x, scale, shift, 3, EPS, 0.0, False, backend)
    groups = x.detach().double().reshape(1, 3, -1)
    torch.testing.assert_close(mean.double(), groups.mean(2), rtol=2e-7, atol=0)
    torch.testing.assert_close(rstd.double(), (groups.var(2, correction=0) + EPS).rsqrt(), rtol=1e-5, atol=0)


def test_mean_of_a_far_first_value(backend):
    # The origin of the sums may be an outlier.
    x = make(backend, (1, 2, 40, 40), mean=1000.0)
    x[..., 0, :] = 0
    ones = torch.ones(2, device=device_of(backend))
    _, mean, rstd = torch.ops.mmscconv.sru(x, ones, ones, 1, EPS, 0.0, False, backend)
    torch.testing.assert_close(mean.double().squeeze(), x.double().mean(), rtol=2e-7, atol=0)
    torch.testing.assert_close(rstd.double().squeeze(), x.double().var(correction=0).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize('threshold', [0.5, 0.45])
@pytest.mark.parametrize('gate', ['soft', 'hard'])
def test_equals_the_paper_s_equations(backend, gate, threshold):
    gamma, beta = torch.tensor([0.5, 1.5, 1.0, 2.0, 0.7, 1.2]), torch.tensor([0.1, -0.2, 0.3, 0.0, -0.4, 0.2])
    w = gamma.double() / gamma.double().sum()
    at = torch.tensor(threshold, dtype=torch.float64).logit().item()
    x = make(backend, (2, 6, 5, 7))
    arguments = [(w * t).float().to(device_of(backend)) for t in (gamma, beta)]
    out = sru(x, *arguments, 3, EPS, at, gate == 'hard', backend=backend)
    values, gamma, beta = (t.double().cpu().numpy() for t in (x, gamma, beta))
    want = reference.sru(values, 3, gamma, beta, threshold, gate)
    torch.testing.assert_close(out.double().cpu(), torch.from_numpy(want), **tolerance(torch.float32))


def test_same_bits_twice(backend):
    arguments = settled(backend, (1, 14, 11, 13), 7, 0.1)
    outs = [sru(*arguments, 7, EPS, 0.1, False, backend=backend) for _ in range(2)]
    grads = [torch.autograd.grad(out, arguments, torch.ones_like(out).cumsum(1)) for out in outs]
    assert torch.equal(*outs)
    assert all(map(torch.equal, *grads))


def test_nan_stays_within_its_group(backend):
    x = make(backend, (2, 8, 3, 5))
    x[1, 3, 1, 1] = float('nan')
    ones = torch.ones(8, device=device_of(backend))
    out = sru(x, ones, ones, 4, EPS, 0.0, False, backend=backend)
    want = sru_plain(x, ones, ones, 4, EPS, 0.0, False)
    torch.testing.assert_close(out, want, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert want.isnan().any() and not want[0].isnan().any()


def test_opcheck(backend, monkeypatch):
    monkeypatch.undo()  # the fakes are not to be filled
    arguments = settled(backend, (2, 6, 3, 5), 3, 0.1, 'channels_last')
    torch.library.opcheck(torch.ops.mmscconv.sru.default, (*arguments, 3, EPS, 0.1, False, backend))
    with torch.no_grad():
        out, mean, rstd = torch.ops.mmscconv.sru(*arguments, 3, EPS, 0.1, False, backend)
    detached = [t.detach() for t in arguments]
    for hard in (False, True):
        torch.library.opcheck(torch.ops.mmscconv.sru_backward.default, (out, *detached, mean, rstd, 0.1, hard, backend))
