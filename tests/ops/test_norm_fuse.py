"""The kernel that norms both branches with the batch's statistics and fuses them, against the modules in float64."""

import copy

import pytest
import torch
from torch import nn

from helpers.doubled import OtherNorm
from helpers.plain import plain_copy
from mmscconv import CRU, ops

CL = torch.channels_last


def maps(n, channels, low, size):
    shapes = ((n, c, *size) for c in (channels, channels - low, low))
    return [torch.randn(s).mul_(2).add_(1).contiguous(memory_format=CL).requires_grad_() for s in shapes]


def by_modules(y1, made, low, norm1, norm2):
    y1, y2 = norm1(y1), norm2(torch.cat((made, low), dim=1))
    beta = torch.stack((y1.mean((2, 3)), y2.mean((2, 3)))).softmax(dim=0)[..., None, None]
    return beta[0] * y1 + beta[1] * y2


@pytest.mark.parametrize('size', [(1, 2), (7, 5), (19, 61)], ids=str)
@pytest.mark.parametrize(('n', 'channels', 'low'), [(3, 8, 2), (2, 24, 12), (1, 136, 34)])
def test_output_statistics_and_all_gradients(n, channels, low, size):
    norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, eps=0.1)
    for norm in norms:
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.normal_(norm.bias)
    inputs = maps(n, channels, low, size)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    references = [copy.deepcopy(norm).double() for norm in norms]
    want = by_modules(*doubles, *references)
    upstream = torch.randn(want.shape)
    want.backward(upstream.double())
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        out, mean, variance = ops.norm_fuse(*inputs, *((norm.weight, norm.bias, norm.eps) for norm in norms))
        out.backward(upstream)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(out, want.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean[0], doubles[0].mean((0, 2, 3)))
    torch.testing.assert_close(variance[0], doubles[0].var((0, 2, 3), correction=0))
    for norm, reference in zip(norms, references, strict=True):
        inputs, doubles = [*inputs, norm.weight, norm.bias], [*doubles, reference.weight, reference.bias]
    for got, expected in zip(inputs, doubles, strict=True):
        torch.testing.assert_close(got.grad, expected.grad.float(), rtol=1e-4, atol=1e-4)


def test_same_bits_with_any_number_of_threads():
    inputs = maps(3, 64, 16, (33, 21))
    norm = torch.rand(64), torch.rand(64), 1e-5
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = ops.norm_fuse(*inputs, norm, norm)[0]
            found.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_ops_are_registered_right():
    inputs = [t.detach() for t in maps(2, 8, 2, (4, 3))]
    norm = torch.rand(8), torch.rand(8), 1e-5
    torch.library.opcheck(torch.ops.mmscconv.norm_fuse.default, (*inputs, *norm, *norm))
    out, *statistics = torch.ops.mmscconv.norm_fuse(*inputs, *norm, *norm)
    arguments = (out, *inputs, *norm, *norm, *statistics)
    torch.library.opcheck(torch.ops.mmscconv.norm_fuse_backward.default, arguments)
    # Without the one that compiles: see tests/models/test_deploy.py.
    kinds = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    leaves = [t.clone().requires_grad_() for t in inputs]
    torch.library.opcheck(torch.ops.mmscconv.norm_fuse.default, (*leaves, *norm, *norm), test_utils=kinds)


@pytest.mark.parametrize('momentum', [0.3, None], ids=str)
@pytest.mark.parametrize('names', [('norm1', 'norm2'), ('norm_up', 'norm_low')], ids=str)
def test_running_statistics_are_those_of_the_modules(names, momentum):
    cru = CRU(16, inner_norm=True, backend='native')
    for name in names:
        getattr(cru, name).momentum = momentum
    plain = plain_copy(cru)
    for _ in range(3):
        x = torch.randn(2, 16, 5, 5).contiguous(memory_format=CL)
        cru(x), plain(x)
    for (name, got), expected in zip(cru.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)


@pytest.mark.parametrize('case', ['hooked', 'of another class', 'one in eval mode', 'without running statistics'])
def test_norms_that_are_called(case, called):
    cru, seen = CRU(16, inner_norm=True, backend='native'), []
    if case == 'hooked':
        cru.norm2.register_forward_hook(lambda *_: seen.append('norm2'))
    elif case == 'of another class':
        cru.norm1 = OtherNorm(16)
    elif case == 'one in eval mode':
        cru.norm1.eval()
    else:
        cru.norm1, cru.norm2 = (nn.BatchNorm2d(16, track_running_stats=False) for _ in range(2))
    x = torch.randn(2, 16, 5, 5).contiguous(memory_format=CL)
    plain = plain_copy(cru)
    torch.testing.assert_close(cru(x), plain(x), rtol=1e-4, atol=1e-5)
    assert ('norm_fuse_forward' in called) == (case == 'without running statistics')
    assert len(seen) == (2 if case == 'hooked' else 0)  # the copy has the hook, too


def test_one_value_has_no_variance():
    cru = CRU(16, inner_norm=True, backend='native')
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        cru(torch.randn(1, 16, 1, 1).contiguous(memory_format=CL))
