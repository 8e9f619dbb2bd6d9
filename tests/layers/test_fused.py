"""Kernels stand in for modules only where nobody can notice it."""

import copy
import logging
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from helpers.doubled import Doubled, DoubledNorm
from helpers.plain import plain_copy
from helpers.subclasses import Subclass
from mmscconv import CRU, SRU, SCConv

CL = torch.channels_last
INNER = ('sru.gn', 'cru.squeeze_up', 'cru.squeeze_low', 'cru.gwc', 'cru.pwc1', 'cru.pwc2', 'cru.pool')
CONVOLUTIONS = [name for name in INNER if name not in ('sru.gn', 'cru.pool')]


def images(layout=CL):
    return torch.randn(2, 32, 7, 6).contiguous(memory_format=layout)


def deployed(layer):
    layer.eval()
    layer.switch_to_deploy()
    return layer


FORMS = {'training-form': lambda layer: layer, 'deploy-form': deployed}
KERNELS = {'training-form': ['sru_squeeze', 'transform_fuse'], 'deploy-form': ['scconv']}


def of_layers(names):
    """Names of kernels without those that pack weights."""
    return [n for n in names if n in ('sru_squeeze', 'transform_fuse', 'scconv', 'sru_forward', 'fuse_forward')]


@pytest.mark.parametrize('form', FORMS)
def test_nothing_in_the_way(form, called):
    layer = FORMS[form](SCConv(32, 32, 3, padding=1))
    with torch.no_grad():
        layer(images())
    assert of_layers(called) == KERNELS[form]


class DoubledPool(nn.Module):
    def forward(self, x):
        return 2 * x


def subclass(layer, name):
    module = layer.get_submodule(name)
    if name == 'cru.pool':
        layer.cru.pool = DoubledPool()
        # A pool of the user's own has no notion of ours.
        layer.cru.pool.is_identity = layer.cru.pool.is_plain = True
    else:
        module.__class__ = DoubledNorm if name == 'sru.gn' else Doubled


def own_forward(layer, name):
    module = layer.get_submodule(name)
    original = module.forward
    module.forward = lambda x: 2 * original(x)


def hook_that_changes(layer, name):
    layer.get_submodule(name).register_forward_hook(lambda module, inputs, output: 2 * output)


def pre_hook_that_changes(layer, name):
    layer.get_submodule(name).register_forward_pre_hook(lambda module, inputs: (inputs[0] + inputs[0].abs(),))


CHANGES = [subclass, own_forward, hook_that_changes, pre_hook_that_changes]


@pytest.mark.parametrize('layout', [torch.contiguous_format, CL], ids=['nchw', 'channels-last'])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    ('name', 'change'),
    [
        pytest.param(name, change, id=f'{name}-{change.__name__}')
        for name in ('sru', 'cru', *INNER)
        for change in CHANGES
        if name in INNER or change is not subclass  # OtherSRU and OtherCRU below are the subclasses of units
    ],
)
def test_changed_modules_count(name, change, form, layout):
    layer = FORMS[form](SCConv(32, 32, 3, padding=1))
    with torch.no_grad():
        x = images(layout)
        before = layer(x)
        change(layer, name)
        got = layer(x)
        torch.testing.assert_close(got, plain_copy(layer)(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, before, rtol=1e-3, atol=1e-4)


METHODS = {
    'sru.logit': lambda logit: lambda x: -logit(x),
    'sru.separate': lambda separate: lambda *args: tuple(reversed(separate(*args))),
    'cru.transform_up': lambda transform: lambda x_up: tuple(t if t is None else 3 * t for t in transform(x_up)),
    'cru.fuse': lambda fuse: lambda *branches: 2 * fuse(*branches),
    'cru.gwc._conv_forward': lambda forward: lambda x, weight, bias: 2 * forward(x, weight, bias),
}


@pytest.mark.parametrize('of', ['object', 'class'])
@pytest.mark.parametrize('name', METHODS)
def test_changed_methods_count(name, of, monkeypatch):
    """Such as of an ablation, or the seamless padding that some put into ``_conv_forward``."""
    layer, x = SCConv(32, 32, 3, padding=1), images()
    with torch.no_grad():
        before = layer(x)
        path, _, method = name.rpartition('.')
        owner = layer.get_submodule(path)
        if of == 'object':
            setattr(owner, method, METHODS[name](getattr(owner, method)))
        else:
            original = getattr(type(owner), method)
            monkeypatch.setattr(
                type(owner), method, lambda self, *args: METHODS[name](lambda *a: original(self, *a))(*args)
            )
        got = layer(x)
        layer.sru.backend = layer.cru.backend = 'plain'
        torch.testing.assert_close(got, layer(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('momentum', [0.1, None], ids=str)
@pytest.mark.parametrize('counts', [True, False], ids=['counts batches', 'counts none'])
@pytest.mark.parametrize('tracks', [True, False])
@pytest.mark.parametrize('channels', [32, 64])
def test_statistics_are_kept_as_the_norm_says(channels, tracks, counts, momentum):
    layer = SCConv(channels, channels, 3, padding=1, inner_norm=True)
    for m in layer.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.momentum = tracks, momentum
            if not counts:
                m.num_batches_tracked = None
    reference, x = plain_copy(layer), torch.randn(2, channels, 7, 6).contiguous(memory_format=CL)
    torch.testing.assert_close(layer(x), reference(x), rtol=1e-4, atol=1e-5)
    for (name, got), want in zip(layer.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)


class Doubles(nn.Module):
    """Stands in for a convolution, and gives another dtype or type than it gets."""

    def __init__(self, conv, change):
        super().__init__()
        self.conv, self.change = conv, change

    def forward(self, x):
        return self.change(self.conv(x))


@pytest.mark.parametrize('change', [Tensor.double, lambda y: y.as_subclass(Subclass)], ids=['fp64', 'subclass'])
@pytest.mark.parametrize('name', ['gwc', 'pwc1', 'pwc2'])
def test_maps_of_another_kind_inside_take_the_plain_form(name, change):
    """Nobody chose a backend: none may refuse them."""
    layer, x = SCConv(16, 16, 3, padding=1), torch.randn(2, 16, 6, 5)
    setattr(layer.cru, name, Doubles(getattr(layer.cru, name), change))
    for form in (layer, FORMS['training-form'](layer).eval()):
        with torch.no_grad():
            got, want = form(x), plain_copy(form)(x)
        assert type(got) is type(want) and got.dtype is want.dtype
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_random_modules_draw_the_same_numbers_again():
    """Such as an adapter's dropout."""
    for settings in ({}, dict(inner_norm=True)):
        layer = SCConv(16, 16, 3, padding=1, **settings)
        layer.cru.gwc = nn.Sequential(nn.Dropout(0.5), layer.cru.gwc)
        again = copy.deepcopy(layer)
        again.recompute = True
        reference, x = plain_copy(layer), torch.randn(2, 16, 6, 5)
        found = []
        for module in (reference, again, layer):
            torch.manual_seed(0)
            inputs = x.clone().requires_grad_()
            module.mark_output_kept()
            y = module(inputs)
            first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)[0]
            torch.manual_seed(1)
            found.append([y, first, torch.autograd.grad(first.square().sum(), inputs)[0]])
        for other in found[1:]:
            for got, want in zip(other, found[0], strict=True):
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


class Dropped(SCConv):
    def _arranged(self, x):
        return nn.functional.dropout(super()._arranged(x), 0.5)


class Normed(SCConv):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.last = nn.BatchNorm2d(self.out_channels)

    def _arranged(self, x):
        return self.last(super()._arranged(x))


@pytest.mark.parametrize(
    ('kind', 'pool'),
    [(SCConv, nn.Dropout(0.5)), (SCConv, nn.BatchNorm2d(16)), (Dropped, None), (Normed, None)],
    ids=['random pool', 'pool with statistics', 'random subclass', 'subclass with statistics'],
)
def test_recomputing_what_others_have_put_into_the_layer(kind, pool):
    layer = kind(16, 16, 3, padding=1, arrangement='C&S' if pool else 'S+C')
    layer.pool = pool
    again, x = copy.deepcopy(layer), torch.randn(2, 16, 6, 5)
    again.recompute = True
    found = []
    for module in (layer, again):
        inputs = x.clone().requires_grad_()
        torch.manual_seed(0)
        y = module(inputs)
        torch.manual_seed(1)
        y.square().sum().backward()
        found.append([y, inputs.grad, *module.buffers()])
    for got, want in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, want)


class OtherSRU(SRU):
    def logit(self, x):
        return -super().logit(x)


class OtherCRU(CRU):
    def transform_up(self, x_up):
        first, second = super().transform_up(x_up)
        return first, 3 * second


def test_subclasses_of_the_units():
    layer = SCConv(32, 32, 3, padding=1)
    x = images()
    for name, other in (('sru', OtherSRU), ('cru', OtherCRU)):
        changed = copy.deepcopy(layer)
        getattr(changed, name).__class__ = other
        torch.testing.assert_close(changed(x), plain_copy(changed)(x))
        assert not torch.allclose(changed(x), layer(x), atol=1e-3)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    'change',
    [
        dict(name='gwc', dilation=(2, 2), padding=(2, 2)),
        dict(name='gwc', padding_mode='circular', _reversed_padding_repeated_twice=[1, 1, 1, 1]),
        dict(name='squeeze_up', stride=(1, 1), padding_mode='reflect', _reversed_padding_repeated_twice=[0, 0, 0, 0]),
    ],
    ids=str,
)
def test_settings_that_were_changed_afterwards(change, form):
    # As DeepLab's recipes do to every convolution of a backbone.
    layer, (name, *_) = FORMS[form](SCConv(32, 32, 3, padding=1)), change.values()
    for key, value in change.items():
        if key != 'name':
            setattr(getattr(layer.cru, name), key, value)
    with torch.no_grad():
        x = images()
        torch.testing.assert_close(layer(x), plain_copy(layer)(x), rtol=1e-4, atol=1e-5)


def test_geometry_that_no_longer_fits_raises_as_convolutions_do():
    layer = SCConv(32, 32, 3, padding=1)
    layer.cru.gwc.padding = (0, 0)
    with pytest.raises(RuntimeError, match='must match the size'):
        layer(images())


@pytest.mark.parametrize('form', FORMS)
def test_global_hooks(form):
    layer, seen = FORMS[form](SCConv(32, 32, 3, padding=1)), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        layer(images())
    finally:
        handle.remove()
    assert seen.count('Conv2d') == 5 and seen.count('SRU') == 1


def spectral(conv):
    parametrizations.spectral_norm(conv)


def old_spectral(conv):
    nn.utils.spectral_norm(conv)


def weight_norm(conv):
    parametrizations.weight_norm(conv)


def pruned(conv):
    prune.l1_unstructured(conv, 'weight', 0.5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', CONVOLUTIONS)
@pytest.mark.parametrize('change', [spectral, old_spectral, weight_norm, pruned], ids=lambda f: f.__name__)
def test_computed_weights_and_their_gradients(change, name, form):
    layer = FORMS[form](SCConv(32, 32, 3, padding=1))
    other = plain_copy(layer)
    for m in (layer, other):
        torch.manual_seed(0)
        change(m.get_submodule(name))
        m.eval().requires_grad_()  # the power iteration would go on at each call
    other.double()
    x = images()
    got, want = layer(x), other(x.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    if form == 'training-form':
        got.square().sum().backward()
        want.square().sum().backward()
        for (key, p), q in zip(layer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f'{k}: {m}')


def in_place(p):
    with torch.no_grad():
        p.copy_(2 * p)


def through_data(p):
    p.data.mul_(2)


def new_data(p):
    p.data = 2 * p.data


@pytest.mark.parametrize('change', [in_place, through_data, new_data], ids=lambda f: f.__name__)
@pytest.mark.parametrize('name', [f'{n}.weight' for n in ('sru.gn', *CONVOLUTIONS)])
def test_deploy_form_sees_weights_that_change(name, change):
    layer = deployed(SCConv(32, 32, 3, padding=1))
    x = images()
    with torch.no_grad():
        before = layer(x)
        change(layer.get_parameter(name))
        torch.testing.assert_close(layer(x), plain_copy(layer)(x), rtol=1e-4, atol=1e-5)
        if name != 'sru.gn.weight':  # gammas that are all alike make no difference
            assert not torch.allclose(layer(x), before, rtol=1e-3)


@pytest.mark.parametrize('form', FORMS)
def test_functional_call(form):
    layer = FORMS[form](SCConv(32, 32, 3, padding=1))
    others = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    x = images()
    with torch.no_grad():
        before = layer(x)
        got = torch.func.functional_call(layer, others, (x,))
        want = torch.func.functional_call(plain_copy(layer), others, (x,))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer(x), before)


def test_what_cannot_be_folded_stays_in_words():
    for change in (subclass, own_forward, hook_that_changes):
        layer = SCConv(32, 32, 3, padding=1).eval()
        change(layer, 'cru.gwc')
        x = images()
        want = layer(x)
        with pytest.raises(ValueError, match=r'cannot be brought into deploy form, gwc: it.* Merge adapters'):
            layer.switch_to_deploy()
        torch.testing.assert_close(layer(x), want)


def test_a_changed_cru_is_not_folded():
    for change in (own_forward, hook_that_changes, lambda layer, name: setattr(layer.cru, '__class__', OtherCRU)):
        layer = SCConv(32, 32, 3, padding=1).eval()
        change(layer, 'cru')
        want = layer(x := images())
        with pytest.raises(ValueError, match=r'cannot be brought into deploy form, it (is a OtherCRU|has hooks)'):
            layer.switch_to_deploy()
        torch.testing.assert_close(layer(x), want)


def test_reason_is_logged(caplog):
    layer = SCConv(32, 32, 3, padding=1)
    layer.cru.gwc.register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.DEBUG, logger='mmscconv'):
        layer(images())
    assert 'CRU calls its modules: gwc: it has hooks' in caplog.text


def test_units_are_siblings():
    for backend in ('plain', None):
        layer, calls = SCConv(32, 32, 3, padding=1, backend=backend), []
        for name in ('sru', 'cru'):
            unit = layer.get_submodule(name)
            unit.register_forward_pre_hook(lambda *_, n=name, c=calls: c.append(f'{n} starts'))
            unit.register_forward_hook(lambda *_, n=name, c=calls: c.append(f'{n} ends'))
        layer(images())
        assert calls == ['sru starts', 'sru ends', 'cru starts', 'cru ends']


def test_hooks_see_one_call_without_a_batch():
    layer, shapes = SCConv(32, 32, 3, padding=1), []
    for module in (layer, layer.sru, layer.cru):
        module.register_forward_hook(lambda module, inputs, output: shapes.append((type(module), output.dim())))
    layer(images()[0])
    assert [kind for kind, _ in shapes] == [SRU, CRU, SCConv]


@pytest.mark.parametrize('backend', ['plain', None], ids=['plain', 'default'])
def test_recomputing_leaves_modules_alone_in_threads(backend):
    layer = SCConv(16, 16, 3, padding=1, inner_norm=True, recompute=True, backend=backend)
    x = torch.randn(2, 16, 6, 5)
    before = [(m.momentum, m.num_batches_tracked) for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]

    def work():
        for _ in range(5):
            layer(x).square().sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    norms = [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, (momentum, batches) in zip(norms, before, strict=True):
        assert norm.momentum == momentum
        assert norm.num_batches_tracked is batches and batches.item() == 20


@pytest.mark.parametrize('settings', [{}, {'inner_norm': True}], ids=str)
@pytest.mark.parametrize('backend', ['plain', None], ids=['plain', 'default'])
def test_recomputing_again_and_for_second_derivatives(backend, settings):
    layer = SCConv(16, 16, 3, padding=1, backend='plain', **settings)
    again = copy.deepcopy(layer)
    again.recompute = True
    for m in again.modules():
        if hasattr(m, 'backend'):
            m.backend = backend
    x = torch.randn(2, 16, 6, 5, requires_grad=True)
    found = []
    for module in (layer, again):
        y = module(x)
        first = torch.autograd.grad(y.sum() + y.square().sum(), x, retain_graph=True)[0]
        second = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        third = torch.autograd.grad(second.square().sum(), [x, *module.parameters()], allow_unused=True)
        found.append([y, first, second, *third, *module.buffers()])
    for got, want in zip(*reversed(found), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


LAYERS_THAT_RECOMPUTE = {
    'recompute=True': (dict(recompute=True), CL),
    'X^w of the default road': ({}, torch.contiguous_format),
}


@pytest.mark.parametrize(('settings', 'layout'), LAYERS_THAT_RECOMPUTE.values(), ids=LAYERS_THAT_RECOMPUTE)
def test_recomputing_uses_the_weights_of_functional_call(settings, layout):
    layer = SCConv(32, 32, 3, padding=1, inner_norm=True, **settings).eval()
    reference = SCConv(32, 32, 3, padding=1, inner_norm=True, backend='plain').eval()
    tensors = {name: (1.5 * t.detach() + 0.1) for name, t in [*layer.named_parameters(), *layer.named_buffers()]}
    found = []
    for module in (layer, reference):
        x = torch.linspace(-1, 1, 2 * 32 * 42).view(2, 32, 7, 6).sin().contiguous(memory_format=layout).requires_grad_()
        torch.func.functional_call(module, tensors, (x,)).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(('settings', 'layout'), LAYERS_THAT_RECOMPUTE.values(), ids=LAYERS_THAT_RECOMPUTE)
@pytest.mark.parametrize('changed', ['input', 'sru.gn.weight', 'cru.squeeze_up.weight'])
def test_what_changes_before_backward_is_noticed(changed, settings, layout):
    layer = SCConv(32, 32, 3, padding=1, **settings)
    x = images(layout)
    inputs = x.clone().requires_grad_()
    inner = inputs * 1
    y = layer(inner)
    with torch.no_grad():
        (inner if changed == 'input' else layer.get_parameter(changed)).mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()
