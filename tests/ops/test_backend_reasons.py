"""Why the kernels step back: transforms, forward mode, tensor subclasses and observers; by themselves, or in words."""

import logging

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers.subclasses import Subclass
from mmscconv import SRU, ops
from mmscconv.ops import native
from mmscconv.ops.backend import BackendUnavailableError, choose_backend, exporting

CL = torch.channels_last


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def x():
    return torch.randn(2, 8, 4, 3).contiguous(memory_format=CL)


@pytest.fixture
def affine():
    return torch.rand(8), torch.rand(8)


def sru(x, affine, backend=None):
    return ops.sru(x, *affine, 2, 1e-5, 9.0, False, backend=backend)


def dual(function):
    def run(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x))).tangent

    return run


TRANSFORMS = {
    'grad': lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    'vmap': lambda f: lambda x: torch.vmap(lambda x: f(x[None])[0])(x),
    'gradients of samples': lambda f: torch.vmap(torch.func.grad(lambda x: f(x[None]).square().sum())),
    'jvp': lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
    'jacrev': lambda f: torch.func.jacrev(lambda x: f(x).sum((2, 3))),
    'hessian product': lambda f: lambda x: torch.func.jvp(TRANSFORMS['grad'](f), (x,), (x,))[1],
    'hessian': lambda f: lambda x: torch.func.hessian(lambda x: f(x).square().sum())(x[:1, :, :1, :1]),
    'dual numbers': dual,
}


@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_see_the_plain_form(transform, x, affine):
    found = transform(lambda x: sru(x, affine))(x)
    want = transform(lambda x: sru(x, tuple(t.double() for t in affine), 'plain'))(x.double())
    torch.testing.assert_close(found, want.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_an_explicit_choice_raises_and_names_the_way_out(transform, x, affine, monkeypatch):
    words = r"backend 'native' cannot run: .* is active and has to see the operations; backend='plain' can"
    with pytest.raises(BackendUnavailableError, match=words):
        transform(lambda x: sru(x, affine, 'native'))(x)
    monkeypatch.setenv('MMSCCONV_BACKEND', 'native')
    with pytest.raises(BackendUnavailableError, match=words):
        transform(lambda x: sru(x, affine))(x)


def test_predicates_follow_what_is_active(x):
    assert not (ops.transformed() or ops.observed() or ops.becoming_graph())
    seen = []
    torch.func.grad(lambda x: (seen.append(ops.transformed()), x.sum())[1])(x)
    with forward_ad.dual_level():
        seen.append(ops.transformed())
    with Mode():
        seen.append(ops.observed() and not ops.transformed())
    torch.jit.trace(lambda x: (seen.append(ops.becoming_graph()), x + 1)[1], x, check_trace=False)
    torch.fx.symbolic_trace(lambda x: (seen.append(exporting()), x + 1)[1])
    assert seen and all(seen)
    assert not (ops.transformed() or ops.observed() or ops.becoming_graph())


def test_tensor_subclasses(x, caplog):
    assert choose_backend(nn.Parameter(x)) == 'native'
    with pytest.raises(
        BackendUnavailableError, match=r"takes no tensor subclasses, got a Subclass; backend='plain' can"
    ):
        choose_backend(x.as_subclass(Subclass), 'native')
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert choose_backend(fake, 'native') == 'plain'  # the mode observes
    with pytest.raises(BackendUnavailableError, match='got a FakeTensor'):
        choose_backend(fake, 'native')
    with caplog.at_level(logging.DEBUG, logger='mmscconv'):
        assert choose_backend(x.as_subclass(Subclass)) == 'plain'
    assert 'plain PyTorch form instead of native kernels: it takes no tensor subclasses' in caplog.text


@pytest.mark.parametrize('backend', [None, 'native'])
def test_observers_see_every_operation(x, affine, backend, monkeypatch):
    calls = []
    monkeypatch.setattr(native, 'call', lambda *arguments: calls.append(arguments))
    wanted = sru(x, affine, 'plain')
    with Mode():
        assert torch.equal(sru(x, affine, backend), wanted)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sru(x, affine, backend).shape == x.shape
    conv = nn.Conv2d(8, 8, 1)
    with FlopCounterMode(display=False) as counter:
        conv(sru(x, affine, backend))
    assert counter.get_total_flops() == 2 * 8 * 8 * 2 * 12
    assert calls == []


@pytest.mark.parametrize('backend', [None, 'native'])
def test_function_modes_see_the_plain_form(x, affine, backend, called):
    with FunctionMode():
        assert ops.observed() and ops.overridden()
        assert torch.equal(sru(x, affine, backend), sru(x, affine, 'plain'))
    assert called == [] and not ops.overridden()


def test_the_default_device_is_no_observer(x, affine, called):
    with torch.device('cpu'):
        assert not ops.observed()
        sru(x, affine)
        with FunctionMode():
            assert ops.overridden()
    assert called == ['sru_forward']


def test_reasons_are_logged_for_whoever_asks(x, affine, caplog):
    with caplog.at_level(logging.INFO, logger='mmscconv'):
        torch.func.grad(lambda x: sru(x, affine).sum())(x)
    assert caplog.text == ''
    with caplog.at_level(logging.DEBUG, logger='mmscconv'):
        torch.func.grad(lambda x: sru(x, affine).sum())(x)
        choose_backend(x.double())
    assert [record.levelname for record in caplog.records] == ['DEBUG'] * 2
    assert 'a transform of torch.func (grad, vmap, jacrev, ...) is active' in caplog.text
    assert 'not torch.float64' in caplog.text


def test_compiled_transforms_give_the_same(x):
    layer = SRU(8, num_groups=2)
    layer.gn.weight.data.uniform_(0.2, 2)
    function = lambda x: torch.func.jvp(lambda x: layer(x).sum(), (x,), (x,))[1]  # noqa: E731
    with torch.no_grad():
        wanted = function(x)
        torch.testing.assert_close(torch.compile(function, backend='aot_eager')(x), wanted)
        layer.backend = 'native'
        with pytest.raises(Exception, match="backend='plain' can"):
            torch.compile(function, backend='aot_eager')(x)
