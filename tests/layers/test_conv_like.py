"""Code around a convolution meets a layer in its place: the arguments, initialization, attributes, hooks."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from helpers.conv_layers import layers
from mmscconv import SCConv
from mmscconv.layers.conv_like import Conv2dLike
from mmscconv.layers.rivals import SPConv, TiedConv


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@layers
def test_arguments_are_conv2d_s_in_its_order(layer, settings):
    ours, theirs = (inspect.signature(kind).parameters for kind in (layer, nn.Conv2d))
    positional = {name: p for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional) == list(theirs)
    for name, parameter in theirs.items():
        assert name == 'bias' or positional[name].default == parameter.default, name


@layers
def test_device_and_dtype_reach_every_tensor(layer, settings):
    arguments = (16, 16, 3, 1, 1, 1, 1, True, 'zeros')
    assert {t.device.type for t in tensors(layer(*arguments, 'meta', **settings)).values()} == {'meta'}
    module = layer(*arguments, 'cpu', torch.float64, **settings)
    assert {t.dtype for t in tensors(module).values() if t.is_floating_point()} == {torch.float64}
    assert module(torch.randn(2, 16, 5, 5, dtype=torch.float64)).dtype == torch.float64


@layers
@pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular', 'mirror'])
def test_other_padding_is_refused_in_words(layer, settings, mode):
    with pytest.raises(
        ValueError, match=rf"{layer.__name__} pads with zeros: .* got '{mode}'; .* nn\.Sequential\(nn\."
    ):
        layer(16, 16, 3, padding=1, padding_mode=mode, **settings)


@layers
def test_reset_parameters_is_a_new_initialization(layer, settings):
    module, new = (layer(64, 64, 3, bias=True, **settings) for _ in range(2))
    for tensor in tensors(module).values():
        tensor.data.fill_(7)
    module.reset_parameters()
    for name, want in tensors(new).items():
        got = tensors(module)[name]
        if want.unique().numel() == 1:  # scales, shifts and statistics of norms; biases
            assert torch.equal(got, want), name
        else:
            assert not torch.equal(got, want) and got.abs().max() <= 1.2 * want.abs().max(), name
            torch.testing.assert_close(got.std(), want.std(), rtol=0.5, atol=0)


def test_what_resets_itself_is_reset_once():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Conv2d(2, 2, 1), 0

        def reset_parameters(self):
            self.calls += 1

    module = SPConv(8, 8, 3)
    module.own = nn.Sequential(nn.Sequential(Own()))
    own = module.own[0][0]
    before = own.inner.weight.clone()
    module.reset_parameters()
    assert own.calls == 1 and torch.equal(own.inner.weight, before)


@layers
def test_skip_init(layer, settings):
    module = skip_init(layer, 32, 32, 3, bias=True, **settings)
    assert {t.device.type for t in tensors(module).values()} == {'cpu'}
    module.reset_parameters()
    assert module(torch.randn(2, 32, 5, 5)).isfinite().all()


@layers
def test_a_missing_weight_is_explained(layer, settings):
    module = layer(16, 16, 3, **settings)
    if layer is TiedConv:
        assert module.weight is module.conv.weight and module.bias is None
        return
    assert not hasattr(module, 'weight')
    with pytest.raises(AttributeError, match=rf'{layer.__name__} has no weight of its own') as caught:
        _ = module.weight
    for words in ('reset_parameters()', 'weights_init', 'switch_to_deploy', 'named_parameters()'):
        assert words in str(caught.value)
    keys = [key for key, _ in module.named_parameters()]
    assert any(key in str(caught.value) for key in keys) or not keys
    with pytest.raises(AttributeError, match=rf"'{layer.__name__}' object has no attribute 'wait'"):
        _ = module.wait


def test_recipes_that_read_the_weight_get_the_explanation():
    def weights_init(m):
        if 'Conv' in type(m).__name__:
            nn.init.normal_(m.weight, 0, 0.02)

    with pytest.raises(AttributeError, match='skip SCConv in functions such as weights_init'):
        nn.Sequential(SCConv(32, 32, 3)).apply(weights_init)


@layers
def test_copies(layer, settings):
    module, x = layer(16, 16, 3, **settings).eval(), torch.randn(1, 16, 5, 5)
    want = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), want)


def test_an_empty_instance_does_not_recurse():
    with pytest.raises(AttributeError):
        _ = Conv2dLike.__new__(Conv2dLike).weight


@layers
def test_hooks_see_one_call_for_an_input_without_batch(layer, settings):
    module, seen = layer(16, 16, 3, padding=1, **settings).eval(), []
    module.register_forward_pre_hook(lambda *_: seen.append('pre'))
    module.register_forward_hook(lambda *_: seen.append('forward'))
    module.register_full_backward_hook(lambda *_: seen.append('backward'))
    x = torch.randn(16, 6, 7, requires_grad=True)
    module(x).sum().backward()
    assert seen == ['pre', 'forward', 'backward']
    torch.testing.assert_close(module(x), module(x.unsqueeze(0)).squeeze(0))


@pytest.mark.parametrize('unit', ['sru', 'cru'])
def test_hooks_of_the_older_units_see_one_call(unit):
    from mmscconv import LegacySCConv

    module, seen = getattr(LegacySCConv(16, 16, 3, padding=1), unit), []
    module.register_forward_hook(lambda *_: seen.append(1))
    assert module(torch.randn(16, 6, 7)).shape == (16, 6, 7)
    assert seen == [1]


@layers
def test_what_is_no_tensor_is_named(layer, settings):
    """As the list of maps that a backbone or a neck returns."""
    conv = layer(8, 8, 3, padding=1, **settings)
    maps = [torch.randn(2, 8, 6, 6)]
    for given, name in ((maps, 'list'), (tuple(maps), 'tuple'), (maps[0].numpy(), 'ndarray'), (None, 'NoneType')):
        with pytest.raises(TypeError, match=rf'^{layer.__name__} expects one tensor \(N, 8, H, W\), got {name}$'):
            conv(given)
