"""Weights that are views of others: kernels read them by their strides, or copies of them."""

import copy

import pytest
import torch
from torch import nn

from helpers.trained import trained
from mmscconv import SCConv, ops
from mmscconv.models import switch_to_deploy

CL = torch.channels_last


def strided(t):
    """The same values, every second one of a longer tensor."""
    return torch.stack((t, torch.full_like(t, 9.0)), dim=-1)[..., 0]


def same_as_plain(layer, x):
    with torch.no_grad():
        got = layer(x)
        with ops.plain_only():
            torch.testing.assert_close(got, layer(x), rtol=1e-4, atol=1e-5)


def model_of(form, **settings):
    conv = SCConv(32, 32, low_squeeze='output', inner_norm=True, **settings)
    model = trained(nn.Sequential(conv, nn.BatchNorm2d(32))).to(memory_format=CL)
    if form == 'train':
        return model.train()
    return switch_to_deploy(model.eval()) if form == 'deploy' else model.eval()


@pytest.mark.parametrize('layout', [CL, torch.contiguous_format], ids=['channels last', 'NCHW'])
@pytest.mark.parametrize('form', ['train', 'eval', 'deploy'])
def test_vectors(form, layout):
    model = model_of(form, kernel_size=3, padding=1)
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, t in values.items():
                if t is not None and t.dim() == 1:
                    values[name] = nn.Parameter(strided(t.detach())) if values is module._parameters else strided(t)
    vectors = [t for t in model.parameters() if t.dim() == 1]
    assert vectors and not any(t.is_contiguous() for t in vectors)
    same_as_plain(model, torch.randn(2, 32, 9, 7).to(memory_format=layout))


def test_running_statistics_with_a_strided_bias():
    one = model_of('train', kernel_size=3, padding=1)
    other = copy.deepcopy(one)
    bias = one[0].cru.squeeze_up.bias
    one[0].cru.squeeze_up.bias = nn.Parameter(strided(bias.detach()))
    x = torch.randn(2, 32, 9, 7).to(memory_format=CL)
    for model in (one, other):
        model(x)
    torch.testing.assert_close(one[0].cru.norm_up.running_mean, other[0].cru.norm_up.running_mean)


@pytest.mark.parametrize('form', ['train', 'eval', 'deploy'])
@pytest.mark.parametrize('kernel_size', [(3, 1), (1, 3), (3, 3)], ids=str)
def test_a_window_turned_on_its_side(kernel_size, form):
    """The stride of an axis of length 1 is any number."""
    model = model_of(form, kernel_size=kernel_size, padding=tuple(k // 2 for k in kernel_size))
    gwc = model[0].cru.gwc
    turned = gwc.weight.detach().transpose(2, 3).contiguous().transpose(2, 3)
    assert turned.stride() != gwc.weight.contiguous().stride()
    gwc.weight = nn.Parameter(turned)
    same_as_plain(model, torch.randn(2, 32, 9, 7).to(memory_format=CL))
