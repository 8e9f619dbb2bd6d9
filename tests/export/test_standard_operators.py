"""Layers exported in standard operators, beside the layer in float64, on other batches and sizes than traced at."""

import copy

import pytest
import torch
from torch import nn

from helpers.runtimes import runtime
from helpers.trained import relative, trained
from mmscconv import SCConv
from mmscconv.export import ncnn_file
from mmscconv.export.onnx_file import export_onnx
from mmscconv.export.openvino_file import open_openvino
from mmscconv.export.writing import open_onnx
from mmscconv.models import switch_to_deploy

onnx = pytest.importorskip('onnx', reason="onnx is not installed: pip install '.[export]'")
pytest.importorskip('onnxruntime', reason="it is not installed: pip install '.[export]'")
pytestmark = runtime('openvino', 'ncnn', 'pnnx', extra='openvino,ncnn')

SETTINGS = [
    {},
    {'stride': 2},
    {'kernel_size': 5, 'stride': 2, 'padding': 2, 'inner_norm': True},
    {'low_squeeze': 'output'},
    {'alpha': 0.75, 'dilation': 2, 'padding': 2},
    {'alpha': 0.0},
    {'alpha': 1.0},
    {'gate': 'hard', 'threshold': 0.48},
    {'threshold': 0.0},
    {'threshold': 1.0, 'gate': 'hard'},
    {'threshold': 0.52},
    {'arrangement': 'C+S'},
    {'arrangement': 'C&S', 'stride': 2},
    {'arrangement': 'S', 'bias': True},
    {'arrangement': 'C'},
]


def layer(**settings):
    out = 16 if settings.get('arrangement') == 'C&S' else 24
    conv = SCConv(16, out, **{'kernel_size': 3, 'padding': 1, 'num_groups': 4, **settings})
    return trained(nn.Sequential(conv, nn.BatchNorm2d(out)))


def write(model, file):
    axes = {'x': {0: 'batch', 2: 'height', 3: 'width'}}
    export_onnx(model, (torch.randn(2, 16, 8, 8),), file, ['x'], ['y'], axes)


def wanted(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('deployed', [False, True], ids=['training form', 'deploy form'])
def test_layer_in_onnx_runtime_and_openvino(settings, deployed, tmp_path):
    model = layer(**settings)
    form = switch_to_deploy(copy.deepcopy(model)) if deployed else model
    write(form, tmp_path / 'm.onnx')
    runtimes = [open_file(tmp_path / 'm.onnx') for open_file in (open_onnx, open_openvino)]
    for size in ((1, 16, 13, 10), (3, 16, 8, 9)):
        x = torch.randn(size)
        want = wanted(model, x)
        for run in runtimes:
            assert relative(run(x)[0], want) < 1e-5


class Tupled(nn.Module):
    """``model`` with a tuple of outputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return (self.model(x),)


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('deployed', [False, True], ids=['training form', 'deploy form'])
def test_layer_in_ncnn(settings, deployed, tmp_path):
    model = layer(**settings)
    form = switch_to_deploy(copy.deepcopy(model)) if deployed else model
    sizes = [torch.randn(1, 16, 8, 8), torch.randn(1, 16, 12, 10)]
    ncnn_file.convert(Tupled(form).eval(), sizes, tmp_path / 'm.param', ['x'], ['y'])
    run = ncnn_file.load(tmp_path / 'm.param', ['x'], ['y'])
    for size in ((1, 16, 13, 10), (3, 16, 9, 11)):
        x = torch.randn(size)
        assert relative(run(x)[0], wanted(model, x)) < 1e-5


def test_ncnn_has_group_norm_as_one_layer(tmp_path):
    form = switch_to_deploy(layer())
    ncnn_file.convert(Tupled(form).eval(), [torch.randn(1, 16, 8, 8)], tmp_path / 'm.param', ['x'], ['y'])
    kinds = [line.split()[0] for line in (tmp_path / 'm.param').read_text().splitlines()[2:]]
    assert kinds.count('GroupNorm') == 1


def names_of(file):
    return [(node.op_type, node.name) for node in onnx.load(file).graph.node]


def test_graph_has_no_operator_at_which_runtimes_stop(tmp_path):
    """X^w is handed over in halves, GN has no reshape of a map, and each map is split once."""
    write(switch_to_deploy(layer()), tmp_path / 'm.onnx')
    operators = [kind for kind, name in names_of(tmp_path / 'm.onnx') if '/sru/' in name or '/cru/' in name]
    assert not {'InstanceNormalization', 'Softmax', 'Expand'} & set(operators)
    assert operators.count('Split') == 3  # the map, and the two numbers of each channel
    assert [name for kind, name in names_of(tmp_path / 'm.onnx') if kind == 'Concat'] == ['/0/cru/Concat']


def test_a_hook_on_the_sru_is_in_the_graph(tmp_path):
    model = layer()
    model[0].sru.register_forward_hook(lambda module, args, y: 2 * y)
    write(model, tmp_path / 'm.onnx')
    x = torch.randn(2, 16, 8, 8)
    got = open_onnx(tmp_path / 'm.onnx')(x)[0]
    assert relative(got, wanted(model, x)) < 1e-5
    assert relative(got, wanted(layer(), x)) > 1e-2


def test_unbatched_input_is_traced():
    model = layer().eval()
    x = torch.randn(16, 8, 8)
    with torch.no_grad():
        assert relative(torch.jit.trace(model[0], x)(x), model[0](x)) < 1e-5
