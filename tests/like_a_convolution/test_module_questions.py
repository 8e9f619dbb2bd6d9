"""Questions that PyTorch asks of its own modules, and arguments that nn.Conv2d has."""

import copy
import pickle

import pytest
import torch
from torch import nn

from like_a_convolution.columns import (
    LAYERS,
    RIVALS,
    SETTINGS,
    Column,
    assert_same,
    build,
    columns,
    every,
    first,
    inputs,
    laid_out,
    loss,
    made,
    pairwise,
    plain,
    weights_of,
)
from mmscconv import CRU, SRU, LegacySCConv, SCConv

UNDEPLOYED = [n for n in (*LAYERS, *SETTINGS) if not n.startswith('deploy')]
# Every class with nn.Conv2d's arguments.
CONVS = {'Conv2d': nn.Conv2d, 'SCConv': SCConv, 'LegacySCConv': LegacySCConv, **RIVALS}
CLASSES = {**CONVS, 'CRU': CRU, 'SRU': SRU}


def constructed(name, **kwargs):
    """Return a layer of 16 channels by the class of this name."""
    if name == 'SRU':
        return SRU(16, **kwargs)
    if name == 'CRU':
        return CRU(16, 16, 3, padding=1, **kwargs)
    return CONVS[name](16, 16, 3, padding=1, **kwargs)


# --- arguments ---


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_dtype(name, dtype):
    layer = constructed(name, dtype=dtype)
    assert {t.dtype for t in layer.state_dict().values() if t.is_floating_point()} == {dtype}
    assert layer(inputs().to(dtype)).dtype == dtype


@pytest.mark.parametrize('name', CLASSES)
def test_device(name):
    layer = constructed(name, device='meta')
    assert {t.device.type for t in layer.state_dict().values()} == {'meta'}
    assert {t.device.type for t in constructed(name, device='cpu', dtype=torch.float32).state_dict().values()} == {
        'cpu'
    }
    with torch.device('meta'):
        assert {t.device.type for t in constructed(name, device='cpu').state_dict().values()} == {'cpu'}


@pytest.mark.parametrize('name', CONVS)
@pytest.mark.parametrize('settings', [dict(), dict(bias=True)], ids=str)
def test_inner_settings_take_device_and_dtype(name, settings):
    if name == 'SCConv':
        settings = dict(**settings, inner_norm=True, arrangement='C&S')
    layer = constructed(name, device='meta', dtype=torch.float64, **settings)
    assert {(t.device.type, t.dtype) for t in layer.state_dict().values() if t.is_floating_point()} == {
        ('meta', torch.float64)
    }


# The layers are asked this in tests/layers/test_conv_like.py.
@pytest.mark.parametrize('name', ['CRU', 'SRU'])
def test_skip_init(name):
    """torch.nn.utils.skip_init builds on the meta device and leaves memory as it is."""
    args = (16,) if name == 'SRU' else (16, 16, 3)
    layer = nn.utils.skip_init(CLASSES[name], *args)
    assert {t.device.type for t in layer.state_dict().values()} == {'cpu'}
    want = CLASSES[name](*args)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in want.state_dict().items()}
    layer.load_state_dict(want.state_dict())
    x = inputs()
    assert torch.equal(layer.eval()(x), want.eval()(x))


@pytest.mark.parametrize('name', CLASSES)
def test_to_empty_and_reset_parameters(name):
    """A layer that was built on the meta device is made real as FSDP and others do it."""
    with torch.device('meta'):
        layer = constructed(name)
    layer = layer.to_empty(device='cpu')
    with torch.no_grad():
        for t in layer.state_dict().values():
            t.fill_(5)  # memory holds anything
    layer.reset_parameters()
    y = layer(inputs())
    assert y.isfinite().all()
    assert 1e-3 < y.std() < 30
    for key, t in layer.state_dict().items():
        assert not (t.is_floating_point() and (t == 5).all()), f'{key} is left as it was'


@pytest.mark.parametrize('name', CLASSES)
def test_construction_draws_only_by_the_generator(name):
    torch.default_generator.manual_seed(1)
    one = constructed(name).state_dict()
    torch.default_generator.manual_seed(1)
    two = constructed(name).state_dict()
    assert all(torch.equal(t, two[k]) for k, t in one.items())


# --- .weight ---


@pytest.mark.parametrize('name', ['CRU', 'SRU'])
def test_weight_is_refused_in_words(name):
    """The message says that there is no one weight, and what to do instead; hasattr and getattr with a default work."""
    layer = constructed(name)
    with pytest.raises(AttributeError) as refused:
        _ = layer.weight
    words = str(refused.value)
    assert type(layer).__name__ in words
    assert len(words) > 80, f'says nothing of what to do instead: {words}'
    assert not hasattr(layer, 'weight')
    assert getattr(layer, 'weight', None) is None
    with pytest.raises(AttributeError, match='wieght'):
        _ = layer.wieght


@pytest.mark.parametrize('name', CONVS)
def test_attributes_of_conv2d(name):
    conv, layer = nn.Conv2d(16, 16, 3, padding=1), constructed(name)
    for attribute in nn.Conv2d.__constants__:
        if attribute not in ('bias',):
            assert getattr(layer, attribute) == getattr(conv, attribute), attribute
    assert layer.bias is None or layer.bias.shape == (16,)


# --- PyTorch's questions of modules ---


@pytest.mark.parametrize('name', [*LAYERS, *SETTINGS])
def test_repr_and_str(name):
    layer = build(Column(name, training=not name.startswith('deploy'))).layer
    assert type(layer).__name__ in repr(layer) == str(layer)
    assert 'object at' not in repr(layer)


@columns(pairwise((*LAYERS, 'inner_norm', 'stride 2')))
def test_pickle_and_deepcopy(column):
    layer, _, x = build(column)
    layer.eval()
    with torch.no_grad():
        want = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), want)
            for (name, a), (_, b) in zip(layer.state_dict().items(), other.state_dict().items(), strict=True):
                assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), name
            pairs = zip(layer.parameters(), other.parameters(), strict=True)
            assert all(a.requires_grad == b.requires_grad for a, b in pairs)


@columns(every((*LAYERS, 'inner_norm', 'stride 2', 'alpha 1', 'kept', 'odd kernel')))
def test_memory_format(column):
    """Channels last in gives channels last out and gradients so, as from nn.Conv2d; contiguous stays contiguous."""
    layer, _, x = build(column)
    y = layer(x.requires_grad_())
    want = torch.channels_last if column.channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=want), 'output'
    with torch.no_grad():
        assert layer(x.detach()).is_contiguous(memory_format=want), 'output without gradients'
    loss(y).backward()
    assert x.grad.is_contiguous(memory_format=want), "input's gradient"
    for name, p in layer.named_parameters():
        if p.grad is not None and p.dim() == 4:
            own = torch.channels_last if p.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
            assert p.grad.is_contiguous(memory_format=own), f"{name}'s gradient"


@columns(pairwise((*LAYERS, 'inner_norm', 'stride 2', 'kept'), training=True))
def test_weights_in_the_other_memory_format(column):
    """Input in one format and weights in the other give the same numbers."""
    layer, truth, x = build(column)
    other = Column(column.layer, column.road, not column.channels_last, column.training)
    layer = layer.to(memory_format=torch.channels_last if other.channels_last else torch.contiguous_format)
    names = list(weights_of(layer))
    got, want = (
        first(m, t.requires_grad_(), {n: dict(m.named_parameters())[n] for n in names})
        for m, t in ((layer, x), (truth, x.double().contiguous()))
    )
    assert_same(got, want)


@pytest.mark.parametrize('name', UNDEPLOYED)
def test_train_and_eval(name):
    """The mode reaches every module, and the calls in either mode differ only by the norms' statistics."""
    layer = made(name)
    for mode in (True, False, True):
        layer.train(mode)
        assert all(m.training == mode for m in layer.modules())
    if not any(isinstance(m, nn.BatchNorm2d) for m in layer.modules()):
        x = inputs()
        torch.testing.assert_close(layer.train()(x), layer.eval()(x))


@columns(pairwise((*LAYERS, 'inner_norm', 'stride 2')))
def test_non_contiguous_input_and_gradient(column):
    layer, truth, x = build(column)
    wide = torch.stack([x, x], -1).requires_grad_()
    y = layer(wide[..., 0])
    seed = torch.linspace(-1, 1, y.numel()).view(y.shape)
    y.backward(torch.stack([seed, seed], -1)[..., 1])
    x64 = x.double().contiguous().requires_grad_()
    truth(x64).backward(seed.double())
    assert_same({'x': wide.grad[..., 0]}, {'x': x64.grad})
    if not column.deployed:
        grads, right = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (layer, truth))
        assert_same(grads, right)


@columns(pairwise((*LAYERS, 'inner_norm', 'stride 2', 'kept'), training=True))
def test_gradients_accumulate(column):
    """A second backward pass adds to .grad in place; zero_grad and set_to_none work."""
    layer, _, x = build(column)
    layer.eval()
    loss(layer(x.requires_grad_())).backward()
    once = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
    kept = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    loss(layer(x)).backward()
    for name, p in layer.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, 2 * once[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f'{n}: {m}')
            assert p.grad is kept[name]
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    assert len({g.data_ptr() for g in grads}) == len(grads), 'two gradients share memory'
    layer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in layer.parameters())


@columns(pairwise((*LAYERS, 'inner_norm', 'stride 2')))
def test_gradients_only_where_they_are_asked_for(column):
    layer, _, x = build(column)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    y = layer(x.requires_grad_())
    assert y.requires_grad
    y.sum().backward()
    assert all(p.grad is None for p in layer.parameters())


@columns(pairwise(('Conv2d', 'S+C', 'CRU', 'inner_norm', 'SRU', *RIVALS), training=True))
def test_one_layer_twice_in_a_graph(column):
    """Weights shared between two calls, as heads over a pyramid's levels have them, with maps of different sizes."""
    layer, truth, x = build(column)
    layer.eval(), truth.eval()
    for module, t in ((layer, x), (truth, x.double())):
        loss(module(module(t.requires_grad_())) + module(t)).backward()
        loss(module(laid_out(inputs(1, size=(4, 5)).to(t.dtype), column).requires_grad_())).backward()
    grads = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    assert_same(grads, {n: p.grad for n, p in truth.named_parameters() if p.grad is not None}, rtol=1e-3)


@columns(pairwise((*LAYERS, 'inner_norm', 'stride 2')))
def test_list_of_children_is_not_changed_by_a_call(column):
    """Names of modules, parameters, buffers and attributes are those of before."""
    layer, _, x = build(column)
    see = lambda: (list(layer.state_dict()), [n for n, _ in layer.named_modules()], sorted(vars(layer)))  # noqa: E731
    before = see()
    layer(x)
    with torch.no_grad():
        layer(x)
    assert see() == before


@pytest.mark.parametrize('name', UNDEPLOYED)
def test_float64_is_exact(name):
    """Default and plain are the same in a dtype that no kernel takes."""
    layer = made(name).double().eval()
    x = inputs().double()
    torch.testing.assert_close(layer(x), plain(layer)(x), rtol=1e-12, atol=1e-12)


def test_kernels_run_where_this_table_thinks_so():
    """The default road is another one than plain; otherwise the table would compare plain with itself."""
    from mmscconv.ops import compiled

    if reason := compiled.unavailable():
        pytest.skip(reason)
    for column in every(
        ('SRU', 'CRU', 'S+C', 'C+S', 'C&S', 'inner_norm', 'deploy'), road='default', channels_last=True
    ):
        layer, _, x = build(column)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
            layer(x)
        assert any('mmscconv::' in e.key for e in profile.key_averages()), f'{column}: no kernel runs'
