"""PFLayer beside a maximum that is taken pixel by pixel, in Python."""

import copy
import itertools

import pytest
import torch
from mmcv.cnn import build_conv_layer
from torch import nn

import mmscconv.models  # noqa: F401, registers the layer
from mmscconv.layers.arguments import padding_amounts
from mmscconv.layers.rivals import PFLayer


def maximum(layer, x):
    """The definition: the largest of the pixels that the window reaches inside of the image."""
    (top, _), (left, _) = padding_amounts(layer.padding, layer.kernel_size, layer.stride, layer.dilation)
    conv = nn.Conv2d(x.shape[1], x.shape[1], layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    out = torch.empty_like(conv(x))
    height, width = x.shape[2:]
    for y, column in itertools.product(*map(range, out.shape[2:])):
        ys = [y * layer.stride[0] - top + k * layer.dilation[0] for k in range(layer.kernel_size[0])]
        columns = [column * layer.stride[1] - left + k * layer.dilation[1] for k in range(layer.kernel_size[1])]
        inside = [(a, b) for a in ys for b in columns if 0 <= a < height and 0 <= b < width]
        out[:, :, y, column] = torch.stack([x[:, :, a, b] for a, b in inside]).amax(dim=0)
    return out


@pytest.mark.parametrize('kernel', [1, 2, 3, (3, 1), 5])
@pytest.mark.parametrize('stride', [1, 2, (1, 3)])
@pytest.mark.parametrize('padding', [0, 1, 'valid', 'same'])
@pytest.mark.parametrize('dilation', [1, 2])
def test_it_is_the_maximum_over_the_window(kernel, stride, padding, dilation):
    if (padding == 'same' and stride != 1) or (padding == 1 and kernel in (1, (3, 1))):
        with pytest.raises(ValueError, match=r'stride 1|less padding'):
            PFLayer(4, 4, kernel, stride, padding, dilation)
        return
    layer, x = PFLayer(4, 4, kernel, stride, padding, dilation), torch.randn(2, 4, 11, 12) - 3
    torch.testing.assert_close(layer(x), maximum(layer, x), rtol=0, atol=0)
    torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=0, atol=0)


def test_padding_of_more_than_half_a_kernel_as_a_convolution_has_it():
    layer, x = PFLayer(4, 4, 3, padding=2), -torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), maximum(layer, x), rtol=0, atol=0)


def test_it_has_no_weights():
    layer = PFLayer(8, 8, 3, padding=1)
    assert not list(layer.parameters()) and not layer.state_dict()
    assert [name for name, _ in PFLayer(8, 8, 3, bias=True).named_parameters()] == ['bias']
    with pytest.raises(AttributeError, match='PFLayer has no weight'):
        layer.weight  # noqa: B018


def test_bias_dtype_and_format():
    layer, x = PFLayer(8, 8, 3, padding=1, bias=True), torch.randn(2, 8, 6, 6)
    nn.init.normal_(layer.bias)
    want = layer(x)
    torch.testing.assert_close(want, maximum(layer, x) + layer.bias.view(-1, 1, 1))
    x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), want)
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype is torch.bfloat16


def test_gradients_go_to_the_largest_pixel():
    layer, x = PFLayer(1, 1, 3, padding=1), torch.arange(9.0).view(1, 1, 3, 3).requires_grad_()
    layer(x).sum().backward()
    want = torch.zeros(3, 3)
    want[1, 1:], want[2, 1:] = torch.tensor([1.0, 2]), torch.tensor([2.0, 4])
    assert x.grad is not None and x.grad[0, 0].tolist() == want.tolist()


@pytest.mark.parametrize(
    ('arguments', 'settings', 'message'),
    [
        ((8, 16, 3), {}, 'put a 1x1 convolution behind'),
        ((8, 8, 3), {'padding': 3}, 'choose less padding'),
        ((8, 8, 3), {'groups': 2}, 'groups must be 1'),
        ((8, 8, 3), {'padding_mode': 'reflect'}, 'nn.ReflectionPad2d'),
    ],
)
def test_impossible_settings(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        PFLayer(*arguments, **settings)


def test_windows_without_a_pixel_are_refused():
    with pytest.raises(ValueError, match='larger than the input'):
        PFLayer(8, 8, 3)(torch.randn(1, 8, 2, 5))
    with pytest.raises(ValueError, match='steps over the whole input'):
        PFLayer(8, 8, 2, padding=2, dilation=4)(torch.randn(1, 8, 3, 9))


def test_it_is_a_conv_layer_of_mmcv():
    assert type(build_conv_layer(dict(type='PFLayer'), 8, 8, 3, padding=1, bias=False)) is PFLayer
