"""Layers exported in standard operators, beside the layer in float64, on other batches and sizes than traced at."""

import copy
import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn

from helpers.runtimes import runtime
from helpers.side_by_side import SideBySide, name_of, require_agreement
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


@functools.cache  # not a fixture, which would also be made outside of the tests' own process
def layers(deployed):
    """Return a layer of each setting, by name, and a network of all."""
    torch.manual_seed(0)
    models = {name_of(settings): layer(**settings) for settings in SETTINGS}
    network = SideBySide(copy.deepcopy(list(models.values()))).eval()
    return models, switch_to_deploy(network) if deployed else network


@functools.cache
def answers_of_onnx_runtime_and_openvino(deployed):
    """Return inputs, each with a dictionary of outputs by each runtime."""
    models, network = layers(deployed)
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'm.onnx'
        axes = {name: {0: 'batch', 2: f'height of {name}', 3: f'width of {name}'} for name in ('x', *models)}
        export_onnx(network, (torch.randn(2, 16, 8, 8),), file, ['x'], list(models), axes)
        runtimes = [open_file(file) for open_file in (open_onnx, open_openvino)]
        return asked(models, runtimes, (1, 16, 13, 10), (3, 16, 8, 9))


def asked(models, runtimes, *sizes):
    inputs = [torch.randn(size) for size in sizes]
    return [(x, [dict(zip(models, run(x), strict=True)) for run in runtimes]) for x in inputs]


FORMS = pytest.mark.parametrize('deployed', [False, True], ids=['training form', 'deploy form'])


@pytest.mark.parametrize('name', map(name_of, SETTINGS))
@FORMS
def test_layer_in_onnx_runtime_and_openvino(name, deployed):
    for x, runtimes in answers_of_onnx_runtime_and_openvino(deployed):
        for got in runtimes:
            require_agreement(layers(deployed)[0][name], x, got[name])


@functools.cache
def answers_of_ncnn(deployed):
    models, network = layers(deployed)
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'm.param'
        sizes = [torch.randn(1, 16, 8, 8), torch.randn(1, 16, 12, 10)]
        ncnn_file.convert(network, sizes, file, ['x'], list(models))
        return asked(models, [ncnn_file.load(file, ['x'], list(models))], (1, 16, 13, 10), (3, 16, 9, 11))


@pytest.mark.parametrize('name', map(name_of, SETTINGS))
@FORMS
def test_layer_in_ncnn(name, deployed):
    for x, (got,) in answers_of_ncnn(deployed):
        require_agreement(layers(deployed)[0][name], x, got[name])


def test_ncnn_has_group_norm_as_one_layer(tmp_path):
    form = switch_to_deploy(layer())
    ncnn_file.convert(SideBySide([form]).eval(), [torch.randn(1, 16, 8, 8)], tmp_path / 'm.param', ['x'], ['y'])
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
