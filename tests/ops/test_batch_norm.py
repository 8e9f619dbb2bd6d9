"""The kernel of batch norm for maps of few channels, against its definition in float64."""

import pytest
import torch
from torch import nn

from helpers.doubled import OtherNorm
from helpers.plain import plain_copy
from mmscconv import CRU, ops

CL = torch.channels_last


def by_definition(x, weight, bias, eps):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + eps).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


def arguments(n, channels, size, offset=1.0):
    x = torch.randn(n, channels, *size).mul_(2).add_(offset).contiguous(memory_format=CL)
    return [t.requires_grad_() for t in (x, torch.rand(channels) * 2 - 1, torch.randn(channels))]


@pytest.mark.parametrize('eps', [1e-5, 0.1])
@pytest.mark.parametrize('size', [(1, 2), (7, 5), (61, 43)], ids=str)
@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 20, 24, 31, 40, 100])
@pytest.mark.parametrize('n', [1, 3])
def test_output_statistics_and_gradients(n, channels, size, eps):
    inputs = arguments(n, channels, size)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    want = by_definition(*doubles, eps)
    upstream = torch.randn(want.shape)
    out, mean, variance = ops.batch_norm(*inputs, eps)
    assert out.is_contiguous(memory_format=CL)
    torch.testing.assert_close(out, want.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean, doubles[0].mean((0, 2, 3)))
    torch.testing.assert_close(variance, doubles[0].var((0, 2, 3), correction=0), rtol=1e-9, atol=1e-12)
    got = torch.autograd.grad(out, inputs, upstream)
    for ours, theirs in zip(got, torch.autograd.grad(want, doubles, upstream.double()), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)


def test_a_mean_far_from_zero_leaves_the_variance():
    x, weight, bias = arguments(2, 4, (9, 9), offset=3000.0)
    out = ops.batch_norm(x, weight, bias, 1e-5)[0]
    want = by_definition(x.double(), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(out, want.float(), rtol=1e-3, atol=2e-3)


def test_same_bits_with_any_number_of_threads():
    inputs, found, threads = arguments(5, 12, (83, 61)), [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = ops.batch_norm(*inputs, 1e-5)[0]
            found.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_numbers_that_are_not_finite_stay_in_their_channel(value):
    x, weight, bias = (t.detach() for t in arguments(2, 4, (5, 5)))
    x[1, 2, 3, 3] = value
    out, mean, variance = ops.batch_norm(x, weight, bias, 1e-5)
    assert out[:, 2].isnan().any() and not mean[2].isfinite() and variance[2].isnan()
    assert out[:, [0, 1, 3]].isfinite().all()


def test_any_layout_and_slices():
    x, weight, bias = arguments(2, 4, (6, 5))
    want = ops.batch_norm(x, weight, bias, 1e-5)[0]
    wide = torch.randn(2, 9, 6, 5).contiguous(memory_format=CL)
    wide[:, 3:7] = x.detach()
    for other in (x.contiguous(), wide[:, 3:7], torch.stack((x, x), -1)[..., 0]):
        assert torch.equal(ops.batch_norm(other, weight, bias, 1e-5)[0], want)
    out = ops.batch_norm(x, weight, bias, 1e-5)[0]
    grads = torch.autograd.grad(out, x, torch.ones(1, 1, 1, 1).expand_as(out), retain_graph=True)
    assert torch.equal(*grads, *torch.autograd.grad(out, x, torch.ones_like(out)))


def test_shapes_that_do_not_fit_are_refused():
    x, weight, bias = (t.detach() for t in arguments(2, 4, (5, 5)))
    with pytest.raises(ValueError, match='batch_norm: shapes do not match'):
        ops.batch_norm(x, weight[:3], bias, 1e-5)


def test_second_derivatives():
    x, weight, bias = arguments(2, 3, (4, 3))
    x = x.detach()[:, :, :2].requires_grad_()

    def total(x, weight, bias, norm):
        y = norm(x, weight, bias)
        grads = torch.autograd.grad(y.sin().sum(), (x, weight, bias), create_graph=True)
        return sum(g.square().sum() for g in grads)

    inputs = (x, weight, bias)
    ours = torch.autograd.grad(total(*inputs, lambda *a: ops.batch_norm(*a, 1e-5)[0]), inputs)
    doubles = tuple(t.detach().double().requires_grad_() for t in inputs)
    theirs = torch.autograd.grad(total(*doubles, lambda *a: by_definition(*a, 1e-5)), doubles)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-3)


def test_ops_are_registered_right():
    inputs = [t.detach() for t in arguments(2, 4, (4, 3))]
    torch.library.opcheck(torch.ops.mmscconv.batch_norm.default, (*inputs, 1e-5))
    out, *statistics = torch.ops.mmscconv.batch_norm(*inputs, 1e-5)
    torch.library.opcheck(
        torch.ops.mmscconv.batch_norm_backward.default, (out, inputs[0], inputs[1], *statistics, 1e-5)
    )
    kinds = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    leaves = [t.clone().requires_grad_() for t in inputs]
    torch.library.opcheck(torch.ops.mmscconv.batch_norm.default, (*leaves, 1e-5), test_utils=kinds)


@pytest.mark.parametrize(
    ('case', 'kernels'),
    [('as built', 2), ('hooked', 0), ('of another class', 0), ('one in eval mode', 1),
     ('without running statistics', 2), ('without weights', 0), ('channels fill vectors', 0), ('NCHW', 0), ('fp64', 0)],
)  # fmt: skip
def test_norms_by_kernel(case, kernels, called):
    channels = 128 if case == 'channels fill vectors' else 16
    cru = CRU(channels, inner_norm=True, backend=None if case == 'fp64' else 'native')
    x = torch.randn(2, channels, 5, 5).contiguous(memory_format=CL)
    if case == 'hooked':
        cru.norm_low.register_forward_hook(lambda *_: None)
    elif case == 'of another class':
        cru.norm_up = OtherNorm(4)
    elif case == 'one in eval mode':
        cru.norm_up.eval()
    elif case == 'without running statistics':
        cru.norm_up, cru.norm_low = (nn.BatchNorm2d(4, track_running_stats=False) for _ in range(2))
    elif case == 'without weights':
        cru.norm_up.weight = cru.norm_up.bias = None
    elif case == 'NCHW':
        x = x.contiguous()
    elif case == 'fp64':
        cru, x = cru.double(), x.double()
    plain = plain_copy(cru)
    torch.testing.assert_close(cru(x), plain(x), rtol=1e-4, atol=1e-5)
    assert called.count('batch_norm_forward') == kernels
    for (name, got), expected in zip(cru.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)
