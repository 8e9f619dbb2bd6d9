"""The channels' division: PyTorch's views and gradients, in the layout of the map."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mmscconv import CRU, ops
from mmscconv.layers.rivals.sp_conv import SPConv
from mmscconv.layers.rivals.tied_conv import TiedConv

CL = torch.channels_last


def map_(layout=CL, channels=8, **keywords):
    return torch.randn(2, channels, 5, 4, **keywords).contiguous(memory_format=layout).requires_grad_()


def gradient_of(divide, x, used):
    middle, seen = x * 1, []
    middle.register_hook(seen.append)
    parts = divide(middle)
    sum((parts[i] * (i + 2)).square().sum() for i in used).backward()
    return seen[0]


@pytest.mark.parametrize('layout', [CL, torch.contiguous_format])
@pytest.mark.parametrize('used', [(0, 1), (0,), (1,)])
@pytest.mark.parametrize('sizes', [(3, 5), (4, 4), (1, 7)])
def test_gradient_is_that_of_pytorchs_split_in_the_layout_of_the_map(sizes, used, layout):
    x = map_(layout)
    grad = gradient_of(lambda t: ops.split_channels(t, sizes), x, used)
    assert torch.equal(grad, gradient_of(lambda t: t.split(sizes, dim=1), x, used))
    assert grad.is_contiguous(memory_format=layout)


def test_parts_share_the_maps_memory_as_those_of_pytorchs_split():
    x = map_()
    parts = ops.split_channels(x, (3, 5))
    assert all(
        a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
        for a, b in zip(parts, x.split((3, 5), 1), strict=True)
    )


def test_wrong_sizes_are_refused_as_by_pytorch():
    with pytest.raises(RuntimeError, match='split_with_sizes expects split_sizes to sum exactly to 8'):
        ops.split_channels(map_(), (3, 4))


def test_higher_derivatives():
    x = map_(channels=4, dtype=torch.float64)

    def divided(t):
        a, b = ops.split_channels(t, (1, 3))
        return a.square() * b.sum(1, keepdim=True), b.sin()

    assert torch.autograd.gradcheck(divided, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(divided, x)


@pytest.mark.parametrize('way', ['batched', 'vmap'])
def test_batched_backward(way):
    x, v = map_(), torch.randn(3, 2, 3, 5, 4)
    grads = []
    for divide in (ops.split_channels, torch.split):
        y = divide(x * 1, (3, 5), 1)[0] if divide is torch.split else divide(x * 1, (3, 5))[0]
        if way == 'vmap':
            grads.append(torch.vmap(lambda v, y=y: torch.autograd.grad(y, x, v, retain_graph=True)[0])(v))
        else:
            grads.append(torch.autograd.grad(y, x, v, is_grads_batched=True)[0])
    assert torch.equal(*grads)


def test_a_part_can_not_be_changed_in_place_in_silence():
    part, _ = ops.split_channels(map_() * 1, (3, 5))
    with pytest.raises(RuntimeError, match='is a view and is being modified inplace'):
        part.mul_(2)


@pytest.mark.parametrize(
    'case',
    ['jvp', 'dual', 'vmap', 'grad', 'subclass', 'flops', 'no_grad', 'compiled', 'traced', 'unbatched', '3d'],
)
def test_what_the_function_was_not_built_for_takes_pytorchs_split(case):
    class Marked(torch.Tensor):
        pass

    x, sizes = map_(), (3, 5)
    want = [p.detach() for p in x.split(sizes, dim=1)]

    def divide(t):
        return ops.split_channels(t, sizes)

    if case == 'jvp':
        got, _ = torch.func.jvp(divide, (x,), (torch.ones_like(x),))
    elif case == 'dual':
        with forward_ad.dual_level():
            got = [forward_ad.unpack_dual(p) for p in divide(forward_ad.make_dual(x, torch.ones_like(x)))]
            assert all((p.tangent == 1).all() for p in got)
            got = [p.primal.clone() for p in got]
    elif case == 'vmap':
        got = [p[0] for p in torch.func.vmap(divide)(x[None])]
    elif case == 'grad':
        assert (torch.func.grad(lambda t: divide(t)[0].sum())(x)[:, :3] == 1).all()
        return
    elif case == 'subclass':
        got = divide(x.detach().as_subclass(Marked).requires_grad_())
        assert type(got[0]) is Marked
    elif case == 'flops':
        with FlopCounterMode(display=False):
            got = divide(x)
    elif case == 'no_grad':
        with torch.no_grad():
            got = divide(x)
    elif case == 'compiled':
        got = torch.compile(divide, backend='aot_eager', fullgraph=True)(x)
    elif case == 'traced':
        got = torch.jit.trace(lambda t: tuple(divide(t)), x)(x)
    else:
        shape = (8, 5) if case == 'unbatched' else (2, 8, 5)
        y = torch.randn(shape).requires_grad_()
        y = y[None] if case == 'unbatched' else y
        want, got = y.split(sizes, dim=1), divide(y)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize('make', [CRU, lambda c: SPConv(c, c, 3, padding=1), lambda c: TiedConv(c, c, 3, padding=1)])
def test_layers_that_divide_channels_give_a_gradient_in_channels_last(make):
    middle, seen = map_(channels=32) * 1, []
    middle.register_hook(seen.append)
    make(32)(middle).square().sum().backward()
    assert seen[0].is_contiguous(memory_format=CL)
