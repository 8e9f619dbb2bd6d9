"""A kernel's results on bf16 maps are its fp32 results on the same values, rounded once: bit for bit, without tiles."""

import pytest
import torch

from mmscconv.ops import native

N, U, L, C, H, W = 3, 8, 4, 16, 7, 5
WINDOW = (3, 3, 1, 1, 1, 1, 1, 1)


@pytest.fixture(autouse=True)
def _no_tiles(monkeypatch):
    monkeypatch.setattr(native, 'multiplies_in_tiles', lambda: False)


def a_map(channels, height=H, width=W):
    """Values that bf16 holds, in fp32."""
    return torch.randn(N, channels, height, width).bfloat16().float().to(memory_format=torch.channels_last)


def sru_squeeze(channels=C, size=(H, W), pool=(1, 1)):
    x, scale, shift = a_map(channels, *size), torch.rand(channels), torch.randn(channels)
    half = channels // 2
    weights = torch.randn(U, half, 1, 1), torch.randn(L, channels - half, 1, 1), torch.randn(U), None
    return native.sru_squeeze, (x, scale, shift, 4, 1e-5, 0.1, False, *weights, pool)


def sru_squeeze_backward(channels=C, size=(H, W)):
    _, (x, scale, shift, groups, eps, threshold, hard, up, low, *_) = sru_squeeze(channels, size)
    mean, rstd = native.sru_squeeze(x, scale, shift, groups, eps, threshold, hard, up, low, None, None, (1, 1))[2:]
    return native.sru_squeeze_backward, (
        a_map(U, *size), a_map(L, *size), x, scale, shift, mean, rstd, up, low, threshold, hard,
    )  # fmt: skip


def weights():
    return torch.randn(C, U // 2, 3, 3), torch.randn(C, U, 1, 1), torch.randn(C - L, L, 1, 1)


def transform_fuse(up=False):
    convolutions, biases = weights(), (torch.randn(C), torch.randn(C - L))
    return native.transform_fuse, (a_map(U), a_map(U) if up else None, a_map(L), *convolutions, *biases, 2, WINDOW)


def transform_fuse_backward(up=False):
    _, arguments = transform_fuse(up)
    beta1 = native.transform_fuse(*arguments)[1]
    return native.transform_fuse_backward, (a_map(C), *arguments[:-2], beta1, *arguments[-2:])


def batch_norm(channels):
    return native.batch_norm, (a_map(channels), torch.rand(channels), torch.randn(channels), 1e-5)


def batch_norm_backward(channels):
    x, weight, bias, eps = batch_norm(channels)[1]
    mean, variance = native.batch_norm(x, weight, bias, eps)[1:]
    return native.batch_norm_backward, (a_map(channels), x, weight, mean, variance, eps)


def norm_fuse():
    norms = (torch.rand(C), torch.randn(C), 1e-5) * 2
    return native.norm_fuse, (a_map(C), a_map(C - L), a_map(L), *norms)


def norm_fuse_backward():
    arguments = norm_fuse()[1]
    return native.norm_fuse_backward, (a_map(C), *arguments, *native.norm_fuse(*arguments)[1:])


CASES = {
    'sru_squeeze': sru_squeeze,
    'sru_squeeze of many positions': lambda: sru_squeeze(channels=600, size=(33, 31)),
    'sru_squeeze and pool': lambda: sru_squeeze(pool=(2, 2)),
    'sru_squeeze_backward': sru_squeeze_backward,
    'sru_squeeze_backward of many positions': lambda: sru_squeeze_backward(channels=600, size=(33, 31)),
    'transform_fuse': transform_fuse,
    'transform_fuse with an input of PWC1': lambda: transform_fuse(up=True),
    'transform_fuse_backward': transform_fuse_backward,
    'transform_fuse_backward with an input of PWC1': lambda: transform_fuse_backward(up=True),
    **{f'batch_norm of {c}': lambda c=c: batch_norm(c) for c in (1, 3, 4, 8, 16, 40)},
    **{f'batch_norm_backward of {c}': lambda c=c: batch_norm_backward(c) for c in (1, 3, 4, 8, 16, 40)},
    'norm_fuse': norm_fuse,
    'norm_fuse_backward': norm_fuse_backward,
}


def is_map(t):
    return isinstance(t, torch.Tensor) and t.dim() == 4 and t.shape[0] == N and t.shape[2:] != (1, 1)


@pytest.mark.parametrize('special', [None, float('inf'), float('nan')])
@pytest.mark.parametrize('case', CASES)
def test_as_in_fp32_and_rounded(case, special):
    function, arguments = CASES[case]()
    if special is not None:
        for t in filter(is_map, arguments):
            t[0, 0, 0, 0] = special
    in_bf16 = [t.bfloat16() if is_map(t) else t for t in arguments]
    want, got = function(*arguments), function(*in_bf16)
    maps = 0
    for w, g in zip(*((r if isinstance(r, tuple) else (r,)) for r in (want, got)), strict=True):
        maps += g.dtype is torch.bfloat16
        assert torch.equal(w.to(g.dtype).nan_to_num(7, 8, 9), g.nan_to_num(7, 8, 9))
    assert maps


def test_rounding_is_torchs():
    """Products by 0 and a bias of every kind of fp32 number: ties, subnormal numbers, overflow, NaN."""
    values = torch.randint(-(2**31), 2**31, (400, 50), dtype=torch.int64).int().view(torch.float32)
    ties = (torch.arange(1000, dtype=torch.int32) * 65536 + 32768).view(torch.float32)
    values.view(-1)[: len(ties)] = ties
    x, weight = torch.zeros(1, 2, 1, 2).bfloat16().to(memory_format=torch.channels_last), torch.zeros(50, 1, 1, 1)
    one = torch.ones(2)
    for row in values:
        y = native.sru_squeeze(x, one, one, 1, 1e-5, 0.1, False, weight, weight, row, row, (1, 1))[0]
        assert torch.equal(y[0, :, 0, 0].nan_to_num(7), row.bfloat16().nan_to_num(7))
