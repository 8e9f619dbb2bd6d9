"""torch.fx makes one node of a layer; torch.jit.script is refused in words, torch.jit.trace works."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from helpers.conv_layers import LAYERS, layers
from mmscconv import SCConv
from mmscconv.layers import AlignedAvgPool2d


def around(layer, **settings):
    """Return a model with the layer in a block, and not as the first thing."""
    inner = nn.Sequential(layer(16, 16, 3, padding=1, **settings), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 16, 1), inner, nn.AdaptiveAvgPool2d(1)).eval()


@layers
def test_fx_sees_one_node(layer, settings):
    model, x = around(layer, **settings), torch.randn(2, 3, 8, 9)
    traced = fx.symbolic_trace(model)
    assert [(n.op, n.target) for n in traced.graph.nodes][2] == ('call_module', '1.0')
    assert len(traced.graph.nodes) == len(list(fx.symbolic_trace(around(nn.Conv2d)).graph.nodes))
    for form in (traced, copy.deepcopy(traced), fx.symbolic_trace(traced)):
        assert torch.equal(form(x), model(x))


@layers
def test_fx_does_not_take_the_layer_alone(layer, settings):
    with pytest.raises(TraceError, match=rf'{layer.__name__} is one node .* nn\.Sequential\(layer\)'):
        fx.symbolic_trace(layer(16, 16, 3, **settings))


@layers
def test_fx_with_a_forward_hook_is_refused(layer, settings):
    model, x = around(layer, **settings), torch.randn(2, 3, 8, 9)
    traced = fx.symbolic_trace(model)
    model[1][0].register_forward_hook(lambda module, args, y: 2 * y)
    assert torch.equal(traced(x), model(x))  # called once, as the hooks of an nn.Conv2d
    with pytest.raises(TraceError, match='would call twice: add it afterwards'):
        fx.symbolic_trace(model)


def test_fx_pools_are_nodes_too():
    model = nn.Sequential(AlignedAvgPool2d(4, 3, 1))
    x = torch.randn(1, 2, 10, 11)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_fx_trains():
    model = around(SCConv).train()
    traced = fx.symbolic_trace(model)
    traced(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model[1][0].cru.gwc.weight.grad is not None  # the same weights, not copies


@layers
def test_jit_script_is_refused_in_words(layer, settings):
    module = layer(16, 16, 3, **settings)
    for model in (module, nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(module))):
        with pytest.raises(NotImplementedError, match=rf'{layer.__name__} cannot be compiled by torch.jit.script') as e:
            torch.jit.script(model)
        assert all(way in str(e.value) for way in ('torch.jit.trace', 'torch.export', 'tools/export.py'))


@layers
def test_jit_trace_works(layer, settings):
    model, x = around(layer, **settings), torch.randn(2, 3, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


@pytest.mark.parametrize('name', [name for name in LAYERS if name not in ('SlimConv-4/3', 'SCConv-C', 'PFLayer')])
def test_feature_extractor_of_torchvision(name):
    torchvision = pytest.importorskip('torchvision')
    from torchvision.models.feature_extraction import create_feature_extractor

    from mmscconv import replace_conv

    layer, settings = LAYERS[name]
    model = torchvision.models.resnet18().eval()
    replace_conv(model, dict(type=layer, **settings), match='layer*')
    x = torch.randn(1, 3, 33, 32)
    got = create_feature_extractor(model, ['layer2', 'layer3.0.conv1'])(x)
    stem = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    layer2 = model.layer2(model.layer1(stem))
    assert torch.equal(got['layer2'], layer2)
    assert torch.equal(got['layer3.0.conv1'], model.layer3[0].conv1(layer2))


# Windows that overhang the image on one side or another, in one of two axes, or never.
STRIDED = [
    dict(kernel_size=3, stride=3, padding=1),
    dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=2, stride=3, padding=1),
    dict(kernel_size=(5, 3), stride=(4, 1), padding=(0, 1)),
    dict(kernel_size=3, stride=(2, 3), padding=1),
    dict(kernel_size=3, stride=2, padding=0, dilation=2),
]


@pytest.mark.parametrize('arrangement', ['S+C', 'C&S'])
@pytest.mark.parametrize('window', STRIDED, ids=str)
def test_jit_trace_serves_other_sizes(window, arrangement):
    layer = SCConv(32, 32, arrangement=arrangement, **window).eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(1, 32, 7, 8))
        for size in ((7, 8), (8, 7), (10, 11), (12, 9), (13, 14)):
            x = torch.randn(2, 32, *size)
            torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('window', STRIDED, ids=str)
def test_export_serves_other_sizes(window):
    pool = AlignedAvgPool2d(**window)
    height, width = (torch.export.Dim(name, min=9, max=64) for name in ('height', 'width'))
    exported = torch.export.export(pool, (torch.randn(1, 2, 15, 16),), dynamic_shapes=({2: height, 3: width},)).module()
    for size in ((15, 16), (14, 13), (20, 9)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(exported(x), pool(x))
