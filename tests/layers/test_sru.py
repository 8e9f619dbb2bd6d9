import numpy as np
import pytest
import torch

from helpers import reference
from mmscconv import SRU


def spread(sru, negative=False):
    """Give gamma and beta values that training might: spread, some gammas negative if asked."""
    torch.nn.init.uniform_(sru.gn.weight, -0.5 if negative else 0.2, 2.0)
    torch.nn.init.uniform_(sru.gn.bias, -0.5, 0.5)
    return sru


def test_by_hand():
    # Two channels, one group; per sample mean 0, variance 1: GN is the identity (eps aside), w = (1/4, 3/4).
    sru = SRU(2, num_groups=1, eps=1e-12).double()
    with torch.no_grad():
        sru.gn.weight.copy_(torch.tensor([1.0, 3.0]))
    x = torch.tensor([[[[1.0, -1.0]], [[1.0, -1.0]]]], dtype=torch.float64)
    low1, low2 = 1 / (1 + np.exp(1 / 4 * 1)), 1 / (1 + np.exp(3 / 4 * 3))
    # +1 is informative: W1 = 1, W2 = 0. -1 is not: W1 = W2 = W, so X1 = X2 = -W.
    want = torch.tensor([[[[1.0, -low1 - low2]], [[1.0, -low1 - low2]]]], dtype=torch.float64)
    torch.testing.assert_close(sru(x), want, rtol=0, atol=1e-9)

    # Positions are judged apart: the informative one keeps to its half, the other crosses to the other half.
    x = torch.tensor([[[[2.0, -2.0]], [[-1.0, 1.0]]]], dtype=torch.float64)
    hard = SRU(2, num_groups=1, gate='hard').double()
    assert hard(x).tolist() == [[[[2.0 - 1.0, 0.0]], [[0.0, -2.0 + 1.0]]]]


@pytest.mark.parametrize('gate', ['soft', 'hard'])
@pytest.mark.parametrize('threshold', [0.5, 0.45, 0.62])
@pytest.mark.parametrize('shape', [(2, 8, 5, 7), (1, 2, 1, 1), (3, 6, 1, 4), (1, 48, 3, 3)], ids=str)
@pytest.mark.parametrize('negative', [False, True], ids=['positive', 'mixed-gammas'])
def test_equals_reference(gate, threshold, shape, negative):
    sru = spread(SRU(shape[1], 4, threshold, gate), negative).double()
    x = torch.randn(shape, dtype=torch.float64) + 0.3
    torch.testing.assert_close(sru(x), torch.from_numpy(reference.of_sru(sru, x)), rtol=1e-10, atol=1e-12)


def test_thresholds_beyond_the_sigmoid():
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(SRU(4, threshold=0.0)(x), x)  # everything informative: W1 = 1, W2 = 0
    nothing = SRU(4, threshold=1.0)
    w = nothing.logit(x).sigmoid()
    mixed = (w * x)[:, :2] + (w * x)[:, 2:]
    torch.testing.assert_close(nothing(x), torch.cat((mixed, mixed), dim=1))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('how', ['weights', 'autocast'])
@pytest.mark.parametrize('channels', [64, 512])
def test_low_precision_decides_as_float64(dtype, how, channels):
    sru = spread(SRU(channels))
    x = torch.randn(2, channels, 14, 14).to(dtype)
    if how == 'weights':
        sru = sru.to(dtype)
    gamma, beta = (p.detach().double().numpy() for p in (sru.gn.weight, sru.gn.bias))
    weights = reference.sru_weights(x.double().numpy(), sru.gn.num_groups, gamma, beta, sru.gn.eps)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=how == 'autocast'):
        decisions = sru.informative(sru.logit(x))
        out = sru(x)
    assert out.dtype == dtype
    agree = decisions.numpy() == (weights > 0.5)
    # Values that fp32 cannot tell from float64 lie on the threshold itself.
    assert agree.mean() > 0.99999
    assert np.abs(weights[~agree] - 0.5).max(initial=0) < 1e-8
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), torch.from_numpy(reference.of_sru(sru, x)), rtol=2 * ulp, atol=1e-3 * ulp)


def test_autocast_keeps_fp32_input_exact():
    sru, x = spread(SRU(32)), torch.randn(1, 32, 6, 6)
    want = sru(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(sru(x), want)


def test_gradcheck():
    sru = spread(SRU(4, num_groups=2)).double()
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    params = dict(sru.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(sru, dict(zip(params, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *params.values()))


def test_hard_gate_leaves_gamma_and_beta_out_of_training():
    sru = SRU(8, gate='hard')
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    sru(x).sum().backward()
    assert not any(p.requires_grad for p in sru.parameters())
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('gammas', [[1.0, -1.0, 2.0, -2.0], [0.0] * 4, [1e-20] * 4, [1e-4, -1e-4, 1e-7, 0.0]], ids=str)
def test_cancelling_gammas_stay_finite(gammas):
    sru = SRU(4, num_groups=2)
    with torch.no_grad():
        sru.gn.weight.copy_(torch.tensor(gammas))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    out = sru(x)
    out.square().sum().backward()
    for value in (out, x.grad, sru.gn.weight.grad, sru.gn.bias.grad):
        assert value.isfinite().all()


def test_constant_input_and_empty_batch():
    assert SRU(4)(torch.ones(2, 4, 3, 3)).isfinite().all()
    assert SRU(4)(torch.zeros(0, 4, 3, 3)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize(('channels', 'groups'), [(64, 16), (24, 8), (30, 2), (2, 2)])
def test_groups_fall_back_to_gcd(channels, groups):
    assert SRU(channels).gn.num_groups == groups


def test_layouts_agree():
    sru, x = spread(SRU(8, 4)), torch.randn(2, 16, 6, 10)
    want = sru(x[:, ::2, :, 1:8].contiguous())
    torch.testing.assert_close(sru(x[:, ::2, :, 1:8]), want)
    torch.testing.assert_close(sru(x[:, ::2, :, 1:8].contiguous(memory_format=torch.channels_last)), want)
    torch.testing.assert_close(sru(x[0, ::2, :, 1:8]), want[0])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'channels': 7}, 'channels=7'),
        ({'channels': 0}, 'channels=0'),
        ({'channels': 8, 'num_groups': 0}, 'num_groups=0'),
        ({'channels': 8.0}, 'channels=8.0'),
        ({'channels': 8, 'num_groups': None}, 'num_groups=None'),
        ({'channels': 8, 'threshold': '0.5'}, "threshold='0.5'"),
        ({'channels': 8, 'eps': 0}, 'eps must be positive and finite, got eps=0'),
        ({'channels': 8, 'eps': float('inf')}, 'eps=inf'),
        ({'channels': 8, 'gate': 'medium'}, "gate='medium'"),
        ({'channels': 8, 'threshold': float('nan')}, 'threshold=nan'),
    ],
    ids=lambda value: str(value),
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SRU(**kwargs)


@pytest.mark.parametrize('shape', [(2, 6, 4, 4), (8, 4), (1, 2, 8, 4, 4)], ids=str)
def test_bad_input(shape):
    with pytest.raises(ValueError, match='SRU expects'):
        SRU(8)(torch.zeros(shape))
