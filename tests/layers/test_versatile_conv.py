"""VersatileConv beside one convolution whose filters are masked, zero by zero."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer

import mmscconv.models  # noqa: F401, registers the layer
from mmscconv.layers.rivals import VersatileConv


def masked(layer, x):
    """The definition: filter n of secondary i is the primary one with a frame of i zeros."""
    weight = layer.primary.weight.detach()
    (height, width), filters = layer.kernel_size, []
    for i in range((min(height, width) + 1) // 2):
        mask = torch.zeros(height, width, dtype=weight.dtype)
        for y, column in itertools.product(range(height), range(width)):
            mask[y, column] = float(i <= y < height - i and i <= column < width - i)
        filters.append(weight * mask)
    whole = torch.cat(filters)[: layer.out_channels]
    return F.conv2d(x, whole, layer.bias, layer.stride, layer.padding, layer.dilation)


@pytest.mark.parametrize('kernel', [1, 3, 5, (3, 1), (5, 3)])
@pytest.mark.parametrize('stride', [1, 2, (1, 3)])
@pytest.mark.parametrize('padding', [0, 1, 2, (3, 0), 'valid', 'same'])
@pytest.mark.parametrize('dilation', [1, 2])
def test_it_is_the_masked_convolution(kernel, stride, padding, dilation):
    if padding == 'same' and stride != 1:
        with pytest.raises(ValueError, match='stride 1'):
            VersatileConv(4, 7, kernel, stride, padding, dilation)
        return
    layer = VersatileConv(4, 7, kernel, stride, padding, dilation, bias=True).double()
    x = torch.randn(2, 4, 11, 12, dtype=torch.double)
    torch.testing.assert_close(layer(x), masked(layer, x))
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_counts_of_a_3x3():
    layer = VersatileConv(32, 64, 3, padding=1)
    assert sum(p.numel() for p in layer.parameters()) == 9 * 32 * 64 / 2
    assert layer.secondary == 2 and layer.primary.out_channels == 32


def test_gradients_reach_the_primary_filters_from_all():
    layer = VersatileConv(2, 4, 3, padding=1)
    layer(torch.randn(1, 2, 5, 5))[:, 2:].sum().backward()  # secondary filters alone
    grad = layer.primary.weight.grad
    assert (grad[..., 1, 1] != 0).all() and grad.flatten(2)[..., [0, 1, 2, 3, 5, 6, 7, 8]].abs().max() == 0


@pytest.mark.parametrize('kernel', [2, (3, 4)])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        VersatileConv(4, 4, kernel)


def test_it_is_a_conv_layer_of_mmcv():
    assert type(build_conv_layer(dict(type='VersatileConv'), 8, 8, 3, padding=1, bias=False)) is VersatileConv
