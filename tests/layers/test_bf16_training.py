"""Training in bf16, by weights or autocast: the kernels of fp32 run, and are nearer to float64 than plain bf16 is."""

import copy
import itertools

import pytest
import torch
from torch import nn

from mmscconv import SCConv
from mmscconv.layers.fused import transform

CL = torch.channels_last
SETTINGS = [
    {},
    {'inner_norm': True},
    {'inner_norm': True, 'low_squeeze': 'output', 'bias': True},
    {'inner_norm': True, 'stride': 2},
    {'gate': 'hard'},
    {'kernel_size': 2, 'padding': 'same'},
    {'alpha': 0.75, 'gwc_groups': 1, 'stride': (2, 1)},
]


def built(settings, channels=32):
    torch.manual_seed(3)
    layer = SCConv(channels, channels, **{'kernel_size': 3, 'padding': 1, **settings})
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    # Weights that bf16 holds: float64 then sees the same ones.
    with torch.no_grad():
        for t in layer.state_dict().values():
            if t.is_floating_point():
                t.copy_(t.bfloat16())
    return layer


def answer(layer, x, autocast, upstream):
    x = x.detach().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(upstream.to(y.dtype))
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {'y': y.detach(), 'x': x.grad, **grads}


def distance(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('how', ['autocast', 'weights'])
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_nearer_to_float64_than_plain_bf16(settings, how, training, called):
    exact = built(settings).double().train(training)
    ours = built({**settings, 'backend': 'native'}).train(training)
    plain = built({**settings, 'backend': 'plain'}).train(training)
    if how == 'weights':
        ours, plain = ours.bfloat16(), plain.bfloat16()
    x = torch.randn(4, 32, 12, 11).bfloat16().contiguous(memory_format=CL)
    upstream = torch.randn(exact(x.double()).shape).bfloat16()
    for module in (exact, ours, plain):
        module.load_state_dict(exact.state_dict())
    want = answer(exact, x.double(), False, upstream)
    called.clear()
    got = answer(ours, x, how == 'autocast', upstream)
    by_batch = settings.get('inner_norm') and training
    assert called[0] == 'sru_squeeze' and called[-1] == 'sru_squeeze_backward'
    assert ('norm_fuse_forward' if by_batch else 'transform_fuse') in called
    theirs = answer(plain, x, how == 'autocast', upstream)
    assert got.keys() == theirs.keys() == want.keys()
    assert got['y'].dtype is got['x'].dtype is torch.bfloat16
    for name in want:
        assert got[name].dtype is theirs[name].dtype, name
        if by_batch and name.endswith(('squeeze_up.bias', 'squeeze_low.bias')):
            continue  # in front of a norm a bias has no gradient but rounding
        assert distance(got[name], want[name]) < 1.1 * distance(theirs[name], want[name]) + 0.002, name
    for (name, buffer), reference in zip(ours.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(buffer.double(), reference.double(), rtol=0.02, atol=0.02, msg=name)


def test_fp32_input_under_autocast_takes_the_modules(called):
    layer = built({'inner_norm': True, 'backend': 'native'})
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(torch.randn(2, 32, 8, 8).contiguous(memory_format=CL))
    assert y.dtype is torch.bfloat16 and 'sru_squeeze' not in called


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_norms_of_another_dtype(dtype, called):
    """Norms in fp32 inside of a bf16 model are usual; convolutions of another dtype are an error, as in torch."""
    layer = built({'inner_norm': True, 'backend': 'native'}).bfloat16()
    for name in ('norm_up', 'norm_low', 'norm1', 'norm2'):
        layer.cru.get_submodule(name).to(dtype)
    y = layer(torch.randn(2, 32, 8, 8).bfloat16().contiguous(memory_format=CL))
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16 and 'norm_fuse_backward' in called
    assert layer.cru.norm1.weight.grad.dtype is dtype
    layer.cru.pwc1.float()
    with pytest.raises(RuntimeError, match=r'same dtype|Input type|expected'):
        layer(torch.randn(2, 32, 8, 8).bfloat16().contiguous(memory_format=CL))


def test_deploy_form_under_autocast_is_one_op(called):
    layer = built({'inner_norm': True}).eval()
    x = torch.randn(2, 32, 9, 9).bfloat16().contiguous(memory_format=CL)
    with torch.no_grad():
        want = copy.deepcopy(layer).double()(x.double())
        layer.switch_to_deploy()
        with torch.autocast('cpu', torch.bfloat16):
            y = layer(x)
    assert y.dtype is torch.bfloat16 and 'scconv' in called
    assert distance(y, want) < 0.004


def test_compiled_graph_agrees_in_dtypes():
    """The ops' fake forms, which torch.compile plans by, have the kernels' dtypes."""
    layer = built({'inner_norm': True, 'backend': 'native'})
    compiled = torch.compile(layer, backend='aot_eager')
    x = torch.randn(2, 32, 8, 8).bfloat16().contiguous(memory_format=CL)
    upstream = torch.randn(2, 32, 8, 8).bfloat16()
    want = answer(built({'inner_norm': True, 'backend': 'native'}), x, True, upstream)
    got = answer(compiled, x, True, upstream)
    for name, t in got.items():
        torch.testing.assert_close(t, want[name.removeprefix('_orig_mod.')], msg=name)


def test_second_derivatives_in_bf16():
    layer = built({'backend': 'native'})
    x = torch.randn(2, 32, 6, 6).bfloat16().contiguous(memory_format=CL).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    (grad,) = torch.autograd.grad(y.float().pow(2).sum(), x, create_graph=True)
    grad.float().pow(2).sum().backward()
    assert x.grad.dtype is torch.bfloat16 and x.grad.isfinite().all()
    assert all(p.grad.dtype is torch.float32 for p in layer.parameters() if p.grad is not None)


BEFORE_A_NORM = 'squeeze_up.bias', 'squeeze_low.bias', 'pwc2.bias', 'norm_low.bias'


@pytest.mark.parametrize(
    ('settings', 'training', 'autocast', 'layout'),
    [
        # Elsewhere in channels last, one kernel does both.
        *itertools.product([{'inner_norm': True}], [True], [False, True], [CL]),
        *itertools.product([{'inner_norm': True}, {}], [True, False], [False, True], [torch.contiguous_format]),
    ],
    ids=str,
)
def test_narrow_layers_have_the_same_numbers(settings, training, autocast, layout, monkeypatch):
    """GWC and PWC1 as one convolution, up to NARROW channels, and as two."""
    x = torch.randn(3, 16, 9, 8).contiguous(memory_format=layout)
    upstream = torch.randn(3, 16, 9, 8)
    at_once, found, answers = transform._y1_at_once, [], []
    monkeypatch.setattr(transform, '_y1_at_once', lambda *args: found.append(at_once(*args)) or found[-1])
    for limit in (transform.NARROW, 0):
        monkeypatch.setattr(transform, 'NARROW', limit)
        layer = built({**settings, 'backend': 'native'}, channels=16).train(training)
        answers.append(answer(layer, x, autocast, upstream))
    assert [y1 is None for y1 in found] == [False, True]
    for name, t in answers[0].items():
        want = answers[1][name]
        before_a_norm = training and settings and name.endswith(BEFORE_A_NORM)
        floor = (0.5 if autocast else 1e-3) if before_a_norm else 1e-6  # such a gradient is nothing but rounding
        assert (t - want).norm() < (0.05 if autocast else 1e-4) * want.norm() + floor, name
