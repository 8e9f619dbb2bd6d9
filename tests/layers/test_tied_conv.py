"""TiedConv is no nn.Conv2d, yet its checkpoints are those of one, and tools find its work in the one inside."""

import copy
import pickle

import pytest
import torch
from mmengine.model import initialize
from mmengine.runner.checkpoint import get_state_dict
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn
from torch.nn.utils import parametrizations

from mmscconv.layers.rivals import TiedConv


def model(**settings):
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(TiedConv(8, 16, 3, bias=True, **settings)))


def test_it_is_no_conv2d_and_has_one():
    layer = TiedConv(8, 16, 3, 2, 1, bias=True)
    assert not isinstance(layer, nn.Conv2d) and type(layer.conv) is nn.Conv2d
    assert [name for name, _ in layer.named_parameters()] == ['conv.weight', 'conv.bias']
    assert layer.weight is layer.conv.weight and layer.bias is layer.conv.bias
    assert layer.weight.shape == (8, 4, 3, 3) and layer.bias.shape == (8,)
    assert (layer.in_channels, layer.out_channels) == (8, 16)


def test_the_inner_convolution_is_called_once_on_all_blocks():
    layer, seen = TiedConv(12, 6, 3, padding=1, blocks=3), []
    layer.conv.register_forward_hook(lambda module, args, y: seen.append((args[0].shape, y.shape)))
    layer(torch.randn(2, 12, 5, 5))
    assert seen == [((6, 4, 5, 5), (6, 2, 5, 5))]


@pytest.mark.parametrize('state', [lambda m: m.state_dict(), get_state_dict], ids=['torch', 'mmengine'])
def test_keys_are_those_of_a_convolution(state):
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 16, 3)))
    assert list(state(model())) == list(state(plain)) == ['0.weight', '0.bias', '1.0.weight', '1.0.bias']
    assert list(state(TiedConv(8, 16, 3, bias=True))) == ['weight', 'bias']
    assert list(state(TiedConv(8, 16, 3))) == ['weight']


@pytest.mark.parametrize('load', [lambda m, s: m.load_state_dict(s), lambda m, s: mmengine_load(m, s, strict=True)])
@pytest.mark.parametrize('make', [model, lambda: TiedConv(8, 16, 3, bias=True)], ids=['nested', 'root'])
def test_checkpoints_load(make, load):
    first, second = make(), make()
    state = pickle.loads(pickle.dumps(first.state_dict()))
    keys = list(state)
    load(second, state)
    assert list(state) == keys
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert list(other.state_dict()) == keys
        load(other, state)


def test_checkpoints_load_by_assignment():
    with torch.device('meta'):
        layer = model()
    state = model().state_dict()
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer[1][0].conv.weight, state['1.0.weight'])


def test_errors_of_loading_name_the_keys_of_the_file():
    layer, state = model(), model().state_dict()
    state['1.0.other'] = state.pop('1.0.bias')
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(state)
    assert 'Missing key(s) in state_dict: "1.0.bias".' in str(caught.value)
    assert 'Unexpected key(s) in state_dict: "1.0.other".' in str(caught.value)
    result = layer.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (['1.0.bias'], ['1.0.other'])
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(model(blocks=4).state_dict())
    assert 'size mismatch for 1.0.weight: copying a param with shape torch.Size([4, 2, 3, 3])' in str(caught.value)
    assert 'conv.' not in str(caught.value)


def test_parametrized_weights_are_saved_and_loaded():
    first, second = model(), model()
    for m in (first, second):
        parametrizations.weight_norm(m[1][0].conv)
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(first(x), second(x))
    assert '1.0.parametrizations.weight.original0' in first.state_dict()


def test_initializers_reach_it_and_its_bias():
    layer = TiedConv(64, 64, 3, bias=True)
    initialize(nn.Sequential(layer), dict(type='Normal', layer='Conv2d', std=0.3, bias=0.5))
    assert 0.28 < layer.weight.std() < 0.32 and (layer.bias == 0.5).all()


def test_same_random_numbers_as_before():
    # It was a subclass of nn.Conv2d: trainings with a seed start at the same weights.
    torch.manual_seed(3)
    layer = TiedConv(8, 16, 3, bias=True)
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 8, 3)
    assert torch.equal(layer.weight, conv.weight) and torch.equal(layer.bias, conv.bias)
