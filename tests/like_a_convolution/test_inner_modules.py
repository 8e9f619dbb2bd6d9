"""Code that replaces, wraps or extends a module inside a layer: what stands there is called, or the layer refuses."""

import copy
import itertools
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from helpers.doubled import Doubled, DoubledNorm
from like_a_convolution.columns import (
    Column,
    accept,
    apart,
    assert_same,
    build,
    check,
    columns,
    dealt,
    every,
    first,
    inputs,
    made,
    note,
    pairwise,
    plain,
)

# Roads that may leave modules out, each with the layouts in which they do so differently.
ROADS = [
    *every(('S+C', 'inner_norm'), road='default'),
    *every(
        ('C+S', 'C&S', 'S', 'CRU', 'stride 2', 'kept', 'alpha 1'), road='default', channels_last=True, training=True
    ),
    *every(('S+C', 'inner_norm'), road='recompute', training=True, channels_last=True),
    *every(('S+C',), road='native', channels_last=True, training=True),
    *every(('deploy', 'deploy inner_norm'), road='default'),
    *every(('Conv2d', 'SPConv', 'GhostConv', 'SlimConv', 'OctConv', 'Legacy'), training=False, channels_last=False),
]


def convolutions(name):
    if name == 'Conv2d':
        return ['']
    names = [n for n, m in made(name).named_modules() if type(m) is nn.Conv2d]
    # A depth-wise or an octave convolution says nothing new.
    return [n for n in names if not n.startswith(('octave.l', 'cheap.0', 'lower', 'upper'))]


def norms(name):
    return [n for n, m in made(name).named_modules() if type(m) is nn.BatchNorm2d]


class DoubledWeight(nn.Conv2d):
    """A subclass with another hook into the same forward."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias if bias is None else 2 * bias)


class DoubledCall(nn.Conv2d):
    """A subclass that overrides the call itself."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Adapter(nn.Module):
    """LoRA's form: the frozen convolution, whose attributes show through, and a trained one beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        torch.default_generator.manual_seed(1)
        self.a = copy.deepcopy(base).requires_grad_(True)
        with torch.no_grad():  # the same numbers in every dtype
            self.a.weight.copy_(0.1 * torch.randn(self.a.weight.shape, dtype=torch.float32))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('base'), name)

    def forward(self, x):
        return self.base(x) + self.a(x)


class Wrapper(nn.Module):
    """A wrapper that shows nothing of what it wraps, as FSDP or a profiler's."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return 2 * self.inner(*args)


class DoubledOutput(nn.Module):
    def forward(self, w):
        return 2 * w


def replaced(place, make):
    """Return a change that puts ``make(module)`` in the place of a module."""

    def change(layer):
        module = layer.get_submodule(place)
        new = make(module)
        if new is not module:
            new.to(next(layer.parameters()).dtype).train(module.training)
            parent, _, name = place.rpartition('.')
            setattr(layer.get_submodule(parent), name, new)

    return change


def subclassed(cls):
    def make(module):
        module.__class__ = cls
        return module

    return make


def own_forward(module):
    """An instance's own forward, as accelerate's device hooks set it."""
    old = module.forward
    module.forward = lambda *args: 2 * old(*args)
    return module


def bound_forward(module):
    """The same by a bound method, which survives a copy."""
    module.forward = types.MethodType(lambda self, *args: 2 * type(self).forward(self, *args), module)
    return module


def parametrized(module):
    parametrize.register_parametrization(module, 'weight', DoubledOutput())
    if getattr(module, 'bias', None) is not None:
        parametrize.register_parametrization(module, 'bias', DoubledOutput())
    return module


def doubled_weights(module):
    """The truth of all of the above: a convolution is linear in its weights."""
    with torch.no_grad():
        module.weight.mul_(2)
        if module.bias is not None:
            module.bias.mul_(2)
    return module


DOUBLING = {
    'subclass': subclassed(Doubled),
    'subclass _conv_forward': subclassed(DoubledWeight),
    'subclass __call__': subclassed(DoubledCall),
    'wrapper': Wrapper,
    'own forward': own_forward,
    'bound forward': bound_forward,
    'parametrization': parametrized,
}
# Here in every place by every way; elsewhere each place by some ways and each way in some places.
ALL_WAYS = Column('S+C', 'default', True, True)


@pytest.mark.parametrize(
    ('column', 'place', 'double'),
    [
        pytest.param(c, p, d, id=f'{c}-{p or "the layer"}-{d}')
        for c in ROADS
        for i, p in enumerate(convolutions(c.layer))
        for j, d in enumerate(DOUBLING)
        if c == ALL_WAYS or (i + j) % 3 == 0
        # Nothing stands around the layer itself to call a module in its place.
        if p or d not in ('wrapper', 'subclass __call__')
    ],
)
def test_a_convolution_that_does_twice_its_work(column, place, double):
    """Each way to double what one inner convolution gives is the same as to double its weights."""

    def question(layer, x, weights):
        y = layer(x)
        (g,) = torch.autograd.grad(y.sin().sum(), x)
        return {'y': y, 'd x': g}

    def after(layer):
        """Double the weights of the truth, which comes first, and the work of the column's module."""
        replaced(place, DOUBLING[double] if seen else doubled_weights)(layer)
        seen.append(layer)

    seen = []
    if column.deployed and column.layer != 'deploy':
        # Weights that a norm was folded into have other values; the change is made before.
        deployed_with(column, place, DOUBLING[double], question)
    else:
        check(question, column, after=after, with_weights=False)
        if column.deployed:
            deployed_with(column, place, DOUBLING[double], question)


def deployed_with(column, place, make, question):
    """Deploy a layer with something in the place of a convolution: it is folded as it works, or refused in words."""
    want_layer = made(column.layer)
    replaced(place, doubled_weights)(want_layer)
    x = inputs()
    want = question(plain(want_layer).eval(), x.double().requires_grad_(), {})
    layer = made(column.layer)
    replaced(place, make)(layer)
    layer.eval()
    try:
        layer.switch_to_deploy()
        got = question(layer, x.clone().requires_grad_(), {})
    except (ValueError, TypeError, RuntimeError) as error:
        accept(place.rpartition('.')[2] in str(error) or 'deploy' in str(error), error)
        return
    assert_same(got, want)


@pytest.mark.parametrize(
    ('column', 'place'),
    [
        pytest.param(c, p, id=f'{c}-{p}')
        for c in ROADS
        if c.layer != 'deploy inner_norm'  # whose folded weights are others than the truth's
        for p in convolutions(c.layer)
        if p  # not the control, which has nothing inside
    ],
)
def test_adapters_learn(column, place):
    """LoRA's form in every place: it adds to the output and gets a gradient."""

    def question(layer, x, weights):
        adapter = layer.get_submodule(place)
        y = layer(x)
        grads = torch.autograd.grad(y.sin().sum(), [x, adapter.a.weight], allow_unused=True)
        assert grads[1] is not None, 'the adapter gets no gradient'
        assert adapter.base.weight.grad is None
        return {'y': y, 'd x': grads[0], 'd adapter': grads[1]}

    check(question, column, after=replaced(place, Adapter), with_weights=False)


def spectral(module):
    torch.default_generator.manual_seed(1)
    return spectral_norm(module)


def spectral_parametrization(module):
    torch.default_generator.manual_seed(1)
    return parametrizations.spectral_norm(module)


NORMALIZED = {
    'spectral_norm': spectral,
    'parametrizations.spectral_norm': spectral_parametrization,
    'weight_norm': weight_norm,
    'parametrizations.weight_norm': parametrizations.weight_norm,
}


@dealt('way', NORMALIZED, ROADS)
@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_reparametrized_weights(column, way):
    """Every inner convolution, as GAN recipes do it, then outputs and derivatives."""

    def change(layer):
        for module in list(layer.modules()):
            if isinstance(module, nn.Conv2d):
                NORMALIZED[way](module)

    # A module that computes its weight at every call cannot be folded.
    refuses = 'cannot be brought into deploy form, squeeze_up: ' if column.deployed else None
    check(first, column, change=change, refuses=refuses, rtol=1e-3)


@columns(every(('S+C', 'inner_norm', 'C&S'), road='recompute', training=True))
@pytest.mark.parametrize('way', NORMALIZED)
@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_recomputing_leaves_every_tensor_in_its_place(column, way):
    """Backward computes the layer again; the modules hold the same tensors after it, with the same values."""

    def change(layer):
        for module in list(layer.modules()):
            if isinstance(module, nn.Conv2d):
                NORMALIZED[way](module)

    layer, _, x = build(column, change)
    y = layer(x.requires_grad_())
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    values = {name: t.detach().clone() for name, t in tensors.items()}
    y.sum().backward()
    now = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    assert now.keys() == tensors.keys()
    for name, t in now.items():
        assert t is tensors[name], f'{name} is another tensor'
        assert torch.equal(t, values[name]), f'{name} has other values'


@pytest.mark.parametrize('name', ['Conv2d', 'CRU', 'S+C', 'C&S', 'S', 'Legacy', 'SPConv'])
@pytest.mark.parametrize('way', NORMALIZED)
@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_reparametrized_weights_in_another_dtype(name, way):
    """``.double()`` moves what a reparametrization is computed from; the weight itself follows at the next call."""
    layer = made(name)
    for module in list(layer.modules()):
        if isinstance(module, nn.Conv2d):
            NORMALIZED[way](module)
    assert layer.double()(inputs().double()).dtype == torch.float64


@columns([c for c in ROADS if c.layer in ('S+C', 'inner_norm', 'C&S', 'CRU', 'S', 'Conv2d', 'Legacy')])
@pytest.mark.parametrize('way', ['parametrizations.spectral_norm', 'parametrizations.weight_norm'])
def test_reparametrized_weights_after_a_step(column, way):
    """A changed original weight shows in the next call, and removing the parametrization keeps the numbers."""

    def change(layer):
        for module in list(layer.modules()):
            if isinstance(module, nn.Conv2d):
                NORMALIZED[way](module)

    def after(layer):
        with torch.no_grad():
            for i, p in enumerate(layer.parameters()):
                p.mul_(1 + (i % 3) / 4)
        layer.eval()
        for module in layer.modules():
            if parametrize.is_parametrized(module):
                with torch.no_grad():
                    parametrize.remove_parametrizations(module, 'weight')

    check(first, column, change=change, after=after, rtol=1e-3)


@columns([c for c in ROADS if c.layer in ('S+C', 'inner_norm', 'SRU', 'C+S', 'C&S', 'S')])
def test_parametrized_norm_of_the_sru(column):
    """Gamma of Eq. 2 is read where it stands."""

    def after(layer):
        parametrize.register_parametrization(layer.sru.gn, 'weight', DoubledOutput())
        with torch.no_grad():
            layer.sru.gn.parametrizations.weight.original[:3].mul_(1.5)

    def question(layer, x, weights):
        y = layer(x)
        wrt = [x, layer.sru.gn.parametrizations.weight.original, layer.sru.gn.bias]
        return dict(zip(['y', 'x', 'weight', 'bias'], [y, *torch.autograd.grad(y.sin().sum(), wrt)], strict=True))

    check(question, column, after=after)


@columns([c for c in ROADS if c.layer in ('S+C', 'C+S', 'C&S', 'S', 'deploy')])
def test_subclass_of_the_sru_s_norm(column):
    """GN(X) of Eq. 1 is what the module there gives: twice as much moves each weight of Eq. 3 further from 1/2."""
    layer, truth, x = build(column)
    layer.sru.gn.__class__ = DoubledNorm
    sru = truth.sru
    with torch.no_grad():
        gn = nn.functional.group_norm(x.double(), sru.gn.num_groups, sru.gn.weight, sru.gn.bias, sru.gn.eps)
        w = torch.sigmoid((sru.gn.weight / sru.gn.weight.sum())[:, None, None] * 2 * gn)
        w1, w2 = torch.where(w > 0.5, 1.0, w), torch.where(w > 0.5, 0.0, w)
        (x11, x12), (x21, x22) = (w1 * x).chunk(2, 1), (w2 * x).chunk(2, 1)
        want = torch.cat([x11 + x22, x12 + x21], 1)
        got = layer.sru(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


class DoubledUnit(nn.Module):
    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, x):
        return 2 * self.unit(x)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('unit'), name)


@columns([c for c in ROADS if c.layer in ('S+C', 'C+S', 'C&S', 'inner_norm', 'kept', 'stride 2', 'Legacy')])
@pytest.mark.parametrize(
    ('way', 'unit'),
    [
        *itertools.product(('wrapper', 'own forward', 'bound forward', 'subclass'), ('sru', 'cru')),
        ('identity', 'sru'),  # a CRU changes size and channels: no identity can stand for it
    ],
)
def test_units_that_do_something_else(column, unit, way):
    """An SRU or CRU that is wrapped, subclassed or taken out is what the layer calls."""

    class Subclass(type(getattr(made(column.layer), unit))):
        def forward(self, x):
            return 2 * super().forward(x)

    ways = {'wrapper': DoubledUnit, 'own forward': own_forward, 'bound forward': bound_forward,
            'subclass': subclassed(Subclass), 'identity': lambda m: nn.Identity()}  # fmt: skip
    layer, truth, x = build(column)
    replaced(unit, ways[way])(layer)
    factor = 1 if way == 'identity' else 2
    x64 = x.double().contiguous()
    sru = (lambda t: t) if way == 'identity' else truth.sru
    scale = {'sru': 1, 'cru': 1, unit: factor}
    if column.layer == 'C+S':
        want = scale['sru'] * sru(scale['cru'] * truth.cru(x64))
    elif column.layer == 'C&S':
        want = scale['cru'] * truth.cru(x64) + truth.pool(scale['sru'] * sru(x64))
    else:
        want = scale['cru'] * truth.cru(scale['sru'] * sru(x64))
    got = layer(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


NORM_CHANGES = {
    'GroupNorm': lambda m: nn.GroupNorm(2, m.num_features),
    'InstanceNorm2d': lambda m: nn.InstanceNorm2d(m.num_features, affine=True),
    'no affine': lambda m: nn.BatchNorm2d(m.num_features, affine=False),
    'no statistics': lambda m: nn.BatchNorm2d(m.num_features, track_running_stats=False),
    'cumulative average': lambda m: nn.BatchNorm2d(m.num_features, momentum=None),
    'Identity': lambda m: nn.Identity(),
    'frozen': lambda m: m.eval(),
    'other eps': lambda m: setattr(m, 'eps', 0.1) or m,
    'own forward': own_forward,
    'SyncBatchNorm': lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m),
}
# The words in which the deploy form refuses what cannot be folded into a convolution.
NOT_FOLDED = {
    **dict.fromkeys(
        ('GroupNorm', 'InstanceNorm2d', 'no affine', 'Identity', 'own forward'),
        'cannot be brought into deploy form, norm_up: .*Merge adapters',
    ),
    'no statistics': 'only a BN with running statistics can be folded',
}
NORM_COLUMNS = [
    *every(('inner_norm',)),
    *every(('output squeeze',), road='default', channels_last=True),
    *every(('deploy inner_norm',), road='default'),
    *every(('SPConv', 'GhostConv'), channels_last=False),
]


@dealt('change', NORM_CHANGES, NORM_COLUMNS)
def test_other_inner_norms(column, change):
    """Each inner norm is replaced, frozen or changed, as norm_cfg, norm_eval and conversions do."""
    if change == 'SyncBatchNorm' and column.training:
        pytest.skip('needs a GPU: SyncBatchNorm trains there alone')

    def put(layer):
        for place in norms(column.layer):
            replaced(place, NORM_CHANGES[change])(layer)
        if change == 'own forward':
            layer.requires_grad_()

    if column.deployed:
        check(first, column, change=put, refuses=NOT_FOLDED.get(change))
    else:
        check(first, column, after=put)


CONV_CHANGES = {
    'reflect': dict(padding_mode='reflect'),
    'circular': dict(padding_mode='circular'),
    'other groups': dict(groups=1),
    'with bias': dict(bias=True),
}


def test_other_convolution_inside():
    """The k x k convolution is replaced by one with other settings, exact nn.Conv2d all the same."""
    apart(_other_convolution)


def _other_convolution():
    for column in ROADS:
        if column.layer in ('S+C', 'inner_norm', 'CRU', 'C+S', 'C&S', 'kept', 'stride 2'):
            for change, settings in CONV_CHANGES.items():
                note(f'{column}, {change}')
                check(first, column, after=lambda layer, settings=settings: put_convolution(layer, settings))


def put_convolution(layer, changed):
    cru = layer if hasattr(layer, 'gwc') else layer.cru
    old = cru.gwc
    settings = dict(stride=old.stride, padding=old.padding, groups=old.groups, bias=False)
    torch.default_generator.manual_seed(1)
    new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, **{**settings, **changed})
    cru.gwc = new.to(old.weight.dtype)


def test_bias_in_every_convolution():
    """Biases are added to convolutions that had none, as folding by others does."""
    apart(_biases)


def _biases():
    for column in ROADS:
        if column.layer in ('S+C', 'inner_norm', 'CRU', 'kept'):
            note(str(column))
            check(first, column, after=put_biases)


def put_biases(layer):
    for i, module in enumerate(list(layer.modules())):
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.full_like(module.weight[:, 0, 0, 0], 0.1 * (i + 1)))


@columns([c for c in ROADS if c.layer in ('Conv2d', 'S+C', 'inner_norm', 'CRU', 'S')])
def test_fake_quantization(column):
    """Eager-mode QAT swaps each convolution for a subclass that quantizes its weight."""
    from torch.ao.nn.qat import Conv2d
    from torch.ao.quantization import get_default_qat_qconfig

    def put(layer):
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Conv2d and name:
                module.train()
                module.qconfig = get_default_qat_qconfig('fbgemm')
                replaced(name, Conv2d.from_float)(layer)
                new = layer.get_submodule(name)
                new.weight_fake_quant.to(torch.float32)

    def question(layer, x, weights):
        y = layer(x.float())
        return {'y': y, 'd x': torch.autograd.grad(y.sin().sum(), x)[0]}

    def put_in_float32(layer):
        layer.float()
        put(layer)

    check(question, column, after=put_in_float32, rtol=2e-2, with_weights=False)


@pytest.mark.parametrize('column', pairwise(('S+C', 'inner_norm', 'CRU')), ids=str)
def test_compiled_inner_module(column):
    """torch.compile wraps a module in another class, through which its weight shows."""

    def put(layer):
        cru = layer if hasattr(layer, 'gwc') else layer.cru
        cru.gwc = torch.compile(own_forward(cru.gwc), backend='eager')

    check(first, column, after=put)


def test_every_place_is_tried():
    tried = set(convolutions('inner_norm'))
    assert tried == {'cru.squeeze_up', 'cru.gwc', 'cru.pwc1', 'cru.squeeze_low', 'cru.pwc2'}
    assert Column('S+C', 'default', True, True) in ROADS
