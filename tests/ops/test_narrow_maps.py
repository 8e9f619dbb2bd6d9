"""SRU and both squeezes of few channels, whose rows the kernels take in forms of their own, against float64."""

import pytest
import torch
import torch.nn.functional as F

from mmscconv import equations, ops

pytestmark = pytest.mark.usefixtures('instructions')
THRESHOLD, GROUPS, EPS = 0.2, 4, 1e-5


def by_equations(x, scale, shift, up, low, bias_up, bias_low):
    """Eq. 1 to 4 and the squeezes of Eq. 5 and 6 by PyTorch's operations."""
    logits = F.group_norm(x, GROUPS, scale, shift, EPS)
    y = equations.reconstruct(x, *equations.gate(logits, THRESHOLD))
    upper, lower = y.split((up.shape[1], low.shape[1]), dim=1)
    return F.conv2d(upper, up, bias_up), F.conv2d(lower, low, bias_low)


def by_kernel(x, scale, shift, up, low, *biases):
    return ops.sru_squeeze(x, (scale, shift, GROUPS, EPS, THRESHOLD, False), up, low, biases)


@pytest.mark.parametrize('channels', [8, 16, 24, 32, 48])
def test_output_and_all_gradients(channels):
    while True:  # until no rounding of fp32 carries a value over the threshold
        x, scale, shift = torch.randn(3, channels, 11, 9), torch.rand(channels) + 0.2, torch.randn(channels)
        if ((F.group_norm(x, GROUPS, scale, shift, EPS) - THRESHOLD).abs() > 1e-5).all():
            break
    outputs = channels // 4, channels // 2
    weights = [torch.randn(o, channels // 2, 1, 1) for o in outputs]
    values = [x.contiguous(memory_format=torch.channels_last), scale, shift, *weights, *map(torch.randn, outputs)]
    found = []
    for function, dtype in ((by_equations, torch.float64), (by_kernel, torch.float32)):
        leaves = [v.to(dtype).requires_grad_() for v in values]
        results = function(*leaves)
        torch.manual_seed(1)
        upstream = [torch.randn(r.shape).to(dtype).contiguous(memory_format=torch.channels_last) for r in results]
        found.append([*results, *torch.autograd.grad(results, leaves, upstream)])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
