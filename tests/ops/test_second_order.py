"""Derivatives beyond the first of every op with kernels, against its plain form in float64."""

import functools
import subprocess
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F

from helpers.paths import ROOT
from mmscconv import SRU, ops
from mmscconv.identities import fuse as fuse_plain
from mmscconv.identities import logit
from mmscconv.identities import sru as sru_plain
from mmscconv.ops import compiled
from mmscconv.ops.norm_fuse import norm_fuse_plain
from mmscconv.ops.sru_squeeze import sru_squeeze_plain
from mmscconv.ops.transform_fuse import transform_fuse_plain

pytestmark = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
CL = torch.channels_last
SAME = ops.Window(2, (3, 3), (1, 1), (1, 1), (1, 1))
STRIDED = ops.Window(2, (3, 3), (2, 2), (1, 1), (1, 1))


def map_(channels, size=(4, 3)):
    return torch.randn(2, channels, *size).contiguous(memory_format=CL)


def sru(threshold=0.1, hard=False):
    while True:  # until no rounding of fp32 carries a value over the threshold
        x, scale, shift = map_(8), torch.rand(8) + 0.2, torch.randn(8)
        if ((logit(x, scale, shift, 2, 1e-5) - threshold).abs() > 1e-3).all():
            break
    settings = (2, 1e-5, threshold, hard)
    return [x, scale, shift], lambda *t: ops.sru(*t, *settings, backend='native'), lambda *t: sru_plain(*t, *settings)


def fuse(made=4, second=False):
    first, low, made, second = map_(8), map_(8 - made), map_(made) if made else None, map_(8) if second else None

    def run(function, first, low, *others):
        others = iter(others)
        arguments = [None if t is None else next(others) for t in (second, made)]
        return function(first, low, *arguments)

    leaves = [t for t in (first, low, second, made) if t is not None]
    return leaves, lambda *t: run(functools.partial(ops.fuse, backend='native'), *t), lambda *t: run(fuse_plain, *t)


def norm_fuse():
    leaves = [map_(8), map_(6), map_(2), *(torch.randn(8) for _ in range(4))]

    def run(function, y1, made, low, weight1, bias1, weight2, bias2):
        return function(y1, made, low, (weight1, bias1, 0.1), (weight2, bias2, 0.2))[0]

    return leaves, lambda *t: run(ops.norm_fuse, *t), lambda *t: run(norm_fuse_plain, *t)


def sru_squeeze(biased=True):
    leaves = [map_(8), torch.rand(8) + 0.2, torch.randn(8), torch.randn(3, 4, 1, 1), torch.randn(2, 4, 1, 1)]
    leaves += [torch.randn(3), torch.randn(2)] if biased else []

    def run(function, x, scale, shift, up, low, *biases):
        arguments = (scale, shift, 2, 1e-5, float('inf'), False)
        return torch.cat(function(x, arguments, up, low, *((biases,) if biases else ())), dim=1)

    return leaves, lambda *t: run(ops.sru_squeeze, *t), lambda *t: run(sru_squeeze_plain, *t)


def transform_fuse(window=SAME, own=False, made=6, biased=True):
    size = (4, 3) if window.stride == (1, 1) else (2, 2)
    leaves = [map_(4), map_(2, size), torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(made, 2, 1, 1)]
    leaves += [map_(4, size)] if own else []
    leaves += [torch.randn(8), torch.randn(made)] if biased else []

    def run(function, x_up, low, gwc, pwc1, pwc2, *others):
        up, biases = (others[0], others[1:]) if own else (None, others)
        return function(x_up, up, low, (gwc, pwc1, pwc2), window, *((biases,) if biases else ()))

    return leaves, lambda *t: run(ops.transform_fuse, *t), lambda *t: run(transform_fuse_plain, *t)


CASES = {
    'sru': sru,
    'sru, soft everywhere': lambda: sru(float('inf')),
    'sru, hard': lambda: sru(hard=True),
    'fuse': fuse,
    'fuse of two parts': lambda: fuse(second=True),
    'fuse without made': lambda: fuse(made=0),
    'norm_fuse': norm_fuse,
    'sru_squeeze': sru_squeeze,
    'sru_squeeze without biases': lambda: sru_squeeze(biased=False),
    'transform_fuse': transform_fuse,
    'transform_fuse, PWC2 makes all': lambda: transform_fuse(made=8),
    'transform_fuse without biases': lambda: transform_fuse(biased=False),
    'transform_fuse, PWC1 with an input of its own': lambda: transform_fuse(STRIDED, own=True),
}


def dependent(leaves):
    """Inputs each of which depends on the first leaf as well."""
    first, *others = leaves
    return [first, *(t * (1 + first.mean()) for t in others)]


def derivatives(function, leaves, order, inputs_of=list):
    """The output, and the gradients of successive norms."""
    out = function(*inputs_of(leaves))
    found = [out]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device='cpu').view_as(out)
    total = (out.square() * weights + out).sum()
    for i in range(order):
        grads = torch.autograd.grad(
            total, leaves, create_graph=i < order - 1, allow_unused=True, materialize_grads=True
        )
        found += grads
        total = sum(grad.square().sum() for grad in grads)
    return found


def assert_alike(found, wanted):
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=1e-4 * max(1.0, want.abs().max().item()))


def copies(leaves, dtype):
    return [t.detach().to(dtype).requires_grad_() for t in leaves]


@pytest.mark.parametrize('inputs_of', [list, dependent], ids=['leaves', 'dependent'])
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_second_derivatives(case, inputs_of):
    leaves, kernel, plain = case()
    found = derivatives(kernel, copies(leaves, torch.float32), 2, inputs_of)
    assert_alike(found, derivatives(plain, copies(leaves, torch.float64), 2, inputs_of))


@pytest.mark.parametrize('name', ['sru, soft everywhere', 'fuse', 'norm_fuse', 'sru_squeeze', 'transform_fuse'])
def test_third_derivatives(name):
    leaves, kernel, plain = CASES[name]()
    leaves = [t * 0.5 for t in leaves]
    found = derivatives(kernel, copies(leaves, torch.float32), 3, dependent)
    assert_alike(found, derivatives(plain, copies(leaves, torch.float64), 3, dependent))


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_some_inputs_without_gradients_and_backward_twice(case):
    leaves, kernel, plain = case()
    for chosen in range(len(leaves)):
        given, doubles = ([t.detach().to(d) for t in leaves] for d in (torch.float32, torch.float64))
        given[chosen].requires_grad_()
        doubles[chosen].requires_grad_()
        if not plain(*doubles).requires_grad:
            continue  # the hard gate's affine has none
        out = kernel(*given)
        grads = [
            torch.autograd.grad(out, given[chosen], out.detach(), retain_graph=True, create_graph=create)[0]
            for create in (False, True, False)
        ]
        assert torch.equal(grads[0], grads[2])
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)
        want, found = (
            derivatives(function, [inputs[chosen]], 2, functools.partial(replaced, inputs, chosen))
            for function, inputs in ((plain, doubles), (kernel, given))
        )
        assert_alike(found, want)


def replaced(inputs, index, leaves):
    return [*inputs[:index], *leaves, *inputs[index + 1 :]]


class Upper:
    """Y1 of x_up by two convolutions, as a CRU has it."""

    def __init__(self, x_up, gwc, pwc1):
        self.weights = gwc, pwc1
        self.x_up = x_up

    def __call__(self, x_up=None):
        x_up, (gwc, pwc1) = self.x_up if x_up is None else x_up, self.weights
        return F.conv2d(x_up, gwc, padding=1, groups=2), F.conv2d(x_up, pwc1)


def summed(again):
    return lambda *t: (sum(again(*t)), None)


def output_kept(how, x, gwc, pwc1, pwc2, function=None):
    """CRU's transform and fuse with the output kept, of two maps that come from one; ``how`` it is made again."""
    x_up, low = x.sin().split((4, 2), dim=1)
    upper = Upper(x_up, gwc, pwc1)
    upper = summed(upper) if 'sum' in how else upper
    first, second = upper(x_up) if 'sum' in how else upper()
    made = F.conv2d(low, pwc2)
    if function is not None:
        return function(first, low, second, made)
    again = functools.partial(upper, x_up) if 'partial' in how else (lambda: upper(x_up))
    return ops.fuse(first, low, second, made, output_is_kept=True, backend='native', again=again)


@pytest.mark.parametrize('how', ['partial', 'closure', 'sum, partial', 'sum, closure'])
@pytest.mark.parametrize('order', [2, 3])
def test_output_kept_with_all_that_leads_to_it(how, order):
    leaves = [map_(6), torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(6, 2, 1, 1)]
    leaves = [t * 0.5 for t in leaves]
    found = derivatives(functools.partial(output_kept, how), copies(leaves, torch.float32), order)
    plain = functools.partial(output_kept, how, function=fuse_plain)
    assert_alike(found, derivatives(plain, copies(leaves, torch.float64), order))


def test_output_kept_gives_the_first_gradients_of_the_kernel():
    leaves = copies([map_(6), torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(6, 2, 1, 1)], torch.float32)
    found = []
    for keep in (functools.partial(ops.fuse, output_is_kept=True, backend='native'), None):
        out = output_kept('partial', *leaves, function=keep)
        found.append([out, *torch.autograd.grad(out, leaves, out.detach(), retain_graph=True)])
        # A second time over the same graph.
        assert all(map(torch.equal, found[-1][1:], torch.autograd.grad(out, leaves, out.detach())))
    assert all(map(torch.equal, *found))


def test_output_kept_under_autocast():
    leaves = copies([map_(6), torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(6, 2, 1, 1)], torch.float32)

    def run(function=None):
        with torch.autocast('cpu', torch.bfloat16):
            return output_kept('partial', *leaves, function=function).float()

    found = []
    for function in (None, fuse_plain):
        grads = torch.autograd.grad(run(function).square().sum(), leaves, create_graph=True)
        found.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)])
    for got, want in zip(*found, strict=True):
        assert (got - want).norm() < 0.05 * want.norm()


def test_what_is_kept_for_making_it_again_is_kept_as_autograd_keeps_it():
    x_up, low = map_(4).requires_grad_(), map_(8)
    upper = Upper(None, torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1))
    (first, second), changed = upper(x_up), x_up.detach().clone()
    again = functools.partial(upper, changed)
    out = ops.fuse(first, low, second, output_is_kept=True, backend='native', again=again)
    changed.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        torch.autograd.grad(out.sum(), x_up, create_graph=True)


@pytest.mark.parametrize('second', [False, True])
def test_output_kept_without_a_way_to_make_it_again(second):
    first, low, more = (map_(8).requires_grad_() for _ in range(3))
    out = ops.fuse(first, low, more if second else None, output_is_kept=True, backend='native')
    assert torch.autograd.grad(out.sum(), first, retain_graph=True)[0].isfinite().all()
    with pytest.raises(RuntimeError, match=r"second derivatives through this fuse need backend='plain'"):
        torch.autograd.grad(out.sum(), first, create_graph=True)


def test_both_parts_count_where_the_op_is_called_by_itself():
    leaves, _, plain = fuse(second=True)
    first, low, second, made = copies(leaves, torch.float32)
    function = lambda *t: torch.ops.mmscconv.fuse(*t, None, None, False, 'native')[0]  # noqa: E731
    found = derivatives(function, [first, low, second, made], 2)
    assert_alike(found, derivatives(plain, copies(leaves, torch.float64), 2))


def backward_calls():
    """A function for each backward op, of one tensor that all that is differentiable depends on."""
    x, low, made = map_(8), map_(2), map_(6)
    c, statistics, doubles = torch.rand(8), torch.rand(2, 2), torch.rand(2, 8, dtype=torch.float64)
    weights = torch.randn(8, 2, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(6, 2, 1, 1)
    up, x_up = torch.randn(3, 4, 1, 1), map_(4)
    kernels = torch.ops.mmscconv
    return {
        'sru_backward': lambda t: kernels.sru_backward(x * t, x, c, c, statistics, statistics, 0.1, False, 'native'),
        'fuse_backward': lambda t: kernels.fuse_backward(x * t, x, False, low, made, torch.rand(2, 8), 'native'),
        'norm_fuse_backward': lambda t: kernels.norm_fuse_backward(
            x * t, x, made, low, c, c, 0.1, c, c, 0.1, doubles, doubles + 1, torch.rand(2, 2, 8, dtype=torch.float64)
        ),
        'sru_squeeze_backward': lambda t: kernels.sru_squeeze_backward(
            map_(3) * t, map_(3), x, c, c, statistics, statistics, up, up, 0.1, False
        ),
        'transform_fuse_backward': lambda t: kernels.transform_fuse_backward(
            x * t, x_up, None, low, *weights, None, None, torch.rand(2, 8), 2, (3, 3, 1, 1, 1, 1, 1, 1)
        ),
    }


@pytest.mark.parametrize('name', backward_calls())
def test_backward_ops_have_no_silent_zeros(name):
    function, t = backward_calls()[name], torch.ones(()).requires_grad_()
    out = function(t)[0]
    with pytest.raises(RuntimeError, match=f"mmscconv::{name} has no derivative: .* backend='plain'"):
        out.sum().backward()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=f'mmscconv::{name} has no forward-mode derivative'):
        function(forward_ad.make_dual(t.detach(), t.detach()))


FORWARD_MODE = {name: case for name, case in CASES.items() if name.startswith(('norm', 'sru_sq', 'transform'))}


@pytest.mark.parametrize('case', FORWARD_MODE.values(), ids=FORWARD_MODE)
def test_forward_mode_goes_through_the_plain_form(case):
    leaves, kernel, plain = case()
    tangents = [torch.randn_like(t) for t in leaves]
    found = torch.func.jvp(kernel, tuple(leaves), tuple(tangents))
    doubles = [tuple(t.double() for t in some) for some in (leaves, tangents)]
    assert_alike(found, torch.func.jvp(plain, *doubles))
    with forward_ad.dual_level():
        out = kernel(*map(forward_ad.make_dual, leaves, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_forward_mode_over_a_recorded_graph(case):
    # The output has no tangent, the gradient that comes in has one, in which the input's gradient is linear.
    leaves, kernel, plain = case()
    inputs, doubles = copies(leaves, torch.float32), copies(leaves, torch.float64)
    out, want = kernel(*inputs), plain(*doubles)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(out), out.detach())
        found = forward_ad.unpack_dual(torch.autograd.grad(out, inputs[0], grad)[0])
    wanted = [
        torch.autograd.grad(want, doubles[0], grad, retain_graph=True)[0]
        for grad in (torch.ones_like(want), want.detach())
    ]
    assert_alike(list(found), wanted)


@pytest.mark.parametrize('create_graph', [False, True])
@pytest.mark.parametrize('name', [name for name in CASES if name != 'sru, hard'])  # whose affine has no gradients
def test_batched_gradients(name, create_graph):
    leaves, kernel, plain = CASES[name]()
    inputs, doubles = copies(leaves, torch.float32), copies(leaves, torch.float64)
    out, want = kernel(*inputs), plain(*doubles)
    of_out, of_want = ([torch.ones_like(t), t.detach()] for t in (out, want))
    found = torch.autograd.grad(out, inputs, torch.stack(of_out), is_grads_batched=True, create_graph=create_graph)
    wanted = [torch.autograd.grad(want, doubles, grad, create_graph=True) for grad in of_want]
    wanted = [torch.stack(grads) for grads in zip(*wanted, strict=True)]
    assert_alike(found, wanted)
    if create_graph:
        assert_alike(
            *(
                torch.autograd.grad(
                    sum(g.square().sum() for g in grads), leaves, allow_unused=True, materialize_grads=True
                )
                for grads, leaves in ((found, inputs), (wanted, doubles))
            )
        )


def test_raw_ops_under_forward_mode():
    x, affine = map_(8), torch.rand(8)
    with pytest.raises(RuntimeError, match=r"mmscconv::sru has no forward-mode derivative: backend='plain' has"):
        torch.func.jvp(
            lambda x: torch.ops.mmscconv.sru(x, affine, affine, 2, 1e-5, 0.1, False, 'native')[0], (x,), (x,)
        )


CHANNELS_LAST_WITHOUT_GRADIENT = """
import torch
from mmscconv.identities import sru as sru_plain
for size in ((4, 3), (1, 1)):
    for requires_grad in (False, True):
        affine = [torch.rand(8).requires_grad_() for _ in range(2)]
        x = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last).requires_grad_(requires_grad)
        out = sru_plain(x, *affine, 2, 1e-5, 9.0, False)
        assert out.is_contiguous(memory_format=torch.channels_last)
        found = torch.autograd.grad(out.sum(), affine)
        leaves = [t.detach().double().contiguous().requires_grad_() for t in (x, *affine)]
        want = torch.autograd.grad(sru_plain(*leaves, 2, 1e-5, 9.0, False).sum(), leaves)
        for got, expected in zip(found, want[1:]):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
"""


def test_plain_form_of_a_channels_last_input_without_gradient():
    command = [sys.executable, '-c', CHANNELS_LAST_WITHOUT_GRADIENT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_hard_gate_in_a_first_layer():
    """Its masks depend on no weight: the gradients are 0."""
    unit = SRU(32, gate='hard', backend='native').requires_grad_(True)
    out = unit(torch.randn(2, 32, 4, 5))
    grads = torch.autograd.grad(out.sum(), [*unit.parameters()], create_graph=True, materialize_grads=True)
    assert all(not g.any() for g in grads)
